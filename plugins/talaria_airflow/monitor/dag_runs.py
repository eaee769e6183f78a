"""Which trainings a DAG run made or reused: its tasks' XComs carry the folders and keys of their outputs."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session


def trained_by(session: Session, dag_id: str, run_id: str) -> set[str]:
    """Store keys of the training outputs that the DAG run's tasks name."""
    values = session.scalars(select(XComModel.value).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id))
    return {key for value in values if (key := training_key(value))}


def training_key(value: Any) -> str | None:
    """The store key in an XCom that describes a training output (`talaria.store.store.Output.as_json`), else None."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return None
    path = PurePath(value["path"])
    if path.parent.name == "train":
        return path.name
    return path.name.removeprefix("train-") if path.parent.name == ".work" and path.name.startswith("train-") else None
