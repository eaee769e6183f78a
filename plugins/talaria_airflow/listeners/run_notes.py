"""Write on a DAG run, as its note, what its tasks have to say to whoever looks at the list of runs.

A task cannot write the note itself (the task SDK has no call for it), so it leaves the sentence as an XCom, and this listener,
which runs in the scheduler, copies it when the run has ended.
"""

from __future__ import annotations

from typing import Any

from airflow.listeners import hookimpl

NOTE = "talaria_note"
"""Key of the XCom. The latest one of a run counts."""
_NO_POOL = "There is no pool with slots called"


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    _tell_missing_pools(dag_run)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    _copy_note(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    _copy_note(dag_run)


def told_of_pools(note: str | None) -> str | None:
    """Return what a run's note says of pools that its tasks would wait for in vain; None where it says nothing."""
    return next((line for line in (note or "").splitlines() if line.startswith(_NO_POOL)), None)


def _tell_missing_pools(dag_run: Any) -> None:
    """Note a pool that the run's tasks would wait for in vain: Airflow says so in the scheduler's log only, and a task cannot
    ask. `configure` reads the note and ends the run."""
    from airflow.models.pool import Pool
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None:
        return
    usable = set(session.scalars(select(Pool.pool).where(Pool.slots != 0)))
    wanted = {task.pool for task in dag_run.get_task_instances(session=session)}
    without = sorted(wanted - usable)
    told = [f"{_NO_POOL} {', '.join(without)}; create it (airflow pools set NAME 1 ...), or its tasks never start."]
    others = [line for line in (dag_run.note or "").splitlines() if not line.startswith(_NO_POOL)]  # a person's own
    note = "\n".join([*others, *(told if without else [])])
    if note != (dag_run.note or ""):
        dag_run.note = note


def _copy_note(dag_run: Any) -> None:
    """Set the note of a run that has none, within the session in which the scheduler ends the run."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or (dag_run.note and told_of_pools(dag_run.note) is None):  # a person's own note stays
        return
    of_run = (XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == NOTE)
    if note := session.scalar(select(XComModel.value).where(*of_run).order_by(XComModel.timestamp.desc())):
        dag_run.note = str(note)[:1000]
