"""Make a task's result something that Airflow can keep."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json, to_json


def storable(value: dict[str, Any]) -> dict[str, Any]:
    """Return JSON values, with null for a number that is not finite.

    Airflow writes an XCom as strict JSON: a NaN among a finished training's facts would fail its task, which then trains again.
    """
    plain: dict[str, Any] = from_json(to_json(value, inf_nan_mode="null"))
    return plain
