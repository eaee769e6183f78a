"""Find the trainings that a DAG run made or reused, from the folders and keys in its tasks' XComs."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session


def trained_by(session: Session, dag_id: str, run_id: str) -> set[str]:
    """Return the store keys of the training outputs in the XComs of the DAG run."""
    values = session.scalars(select(XComModel.value).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id))
    return {key for value in values if (key := training_key(value))}


def training_key(value: Any) -> str | None:
    """Return the store key in an XCom that describes a training output (`talaria.store.store.Output.as_json`), else None."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return None
    path = PurePath(value["path"])
    if path.parent.name == "train":
        return path.name
    return path.name.removeprefix("train-") if path.parent.name == ".work" and path.name.startswith("train-") else None
