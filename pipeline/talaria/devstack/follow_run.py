"""Follow a DAG run from the terminal: states of its tasks, and step, loss and time left while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from talaria.common.errors import UserError
from talaria.devstack.airflow_client import AirflowApi
from talaria.runs.catalog import list_runs
from talaria.runs.summary import progress_line, summarize

FINISHED = ("success", "failed", "upstream_failed", "skipped", "removed")
MARKS = {"success": "[green]✔[/]", "failed": "[red]✘[/]", "upstream_failed": "[red]·[/]", "skipped": "[dim]-[/]"}
PLAIN_SECONDS = 5.0
"""Seconds between two progress lines of a training without a terminal."""
SILENCE_SECONDS = 60.0
"""Seconds that Airflow may be unreachable while a run is followed."""


@dataclass(frozen=True)
class TaskView:
    """The display of a task; a mapped task has one view for all its instances."""

    id: str
    state: str
    seconds: float | None
    note: str = ""


@dataclass
class Follower:
    api: AirflowApi
    dag_id: str
    run_id: str
    store: Path

    def __post_init__(self) -> None:
        self._order = {name: number for number, name in enumerate(_topological(self.api.dag_tasks(self.dag_id)))}
        self._reused: dict[str, bool] = {}
        self._began = time.time()

    def look(self) -> tuple[str, list[TaskView]]:
        """Return the run's state and its tasks, in the order in which they run."""
        groups: dict[str, list[dict[str, Any]]] = {}
        state = str(self.api.run(self.dag_id, self.run_id)["state"])
        for task in self.api.tasks(self.dag_id, self.run_id):
            groups.setdefault(task["task_id"], []).append(task)
        return state, sorted((self._view(*group) for group in groups.items()), key=lambda view: self._order.get(view.id, 0))

    def _view(self, name: str, parts: list[dict[str, Any]]) -> TaskView:
        states = [part["state"] or "waiting" for part in parts]
        state = next((state for state in ("failed", "running") if state in states), states[0])
        durations = [part["duration"] for part in parts if part["duration"] is not None]
        note = ""
        if state == "success" and self._was_reused(name):
            note = "reused"
        elif state == "running" and name.endswith("train"):
            note = self.training() or ""
        elif state == "up_for_retry":
            note = "failed; will be tried again"
        elif state == "skipped":
            note = "not needed in this run"
        return TaskView(name, state, max(durations, default=None), note)

    def _was_reused(self, name: str) -> bool:
        if name not in self._reused:
            value = self.api.xcom(self.dag_id, self.run_id, name)
            self._reused[name] = isinstance(value, dict) and bool(value.get("reused"))
        return self._reused[name]

    def training(self) -> str | None:
        """Return step, loss and time left of the current training, or None before its first step."""
        latest = next((run for run in list_runs(self.store) if not run.finished), None)
        card = summarize(latest, time.time()) if latest else {}
        if not card or card["active"] < self._began or not card["step"]:
            return None
        return progress_line(card)


def follow(follower: Follower, console: Console, poll: float = 1.0) -> tuple[str, list[TaskView]]:
    """Show the run until it has ended; return its state and tasks."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            return _until_ended(follower, poll, lambda tasks: live.update(_table(tasks)))
    return _until_ended(follower, poll, PlainLines(console).show)


def _until_ended(follower: Follower, poll: float, show: Callable[[list[TaskView]], None]) -> tuple[str, list[TaskView]]:
    heard = time.monotonic()
    while True:
        try:
            state, tasks = follower.look()
            heard = time.monotonic()
        except httpx.HTTPError as error:  # the api-server is busy, or is being restarted
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise UserError("Airflow does not answer any more; after make up, the run goes on by itself.") from error
        else:
            show(tasks)
            if state in ("success", "failed"):
                return state, tasks
        time.sleep(poll)


class PlainLines:
    """Print one line per change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}
        self._start = time.monotonic()
        self._last_progress = 0.0

    def show(self, tasks: list[TaskView]) -> None:
        now = time.monotonic() - self._start
        for task in tasks:
            changed = self._shown.get(task.id) != task.state
            progressed = task.state == "running" and task.note and now - self._last_progress >= PLAIN_SECONDS
            if task.state not in (*FINISHED, "running", "up_for_retry") or not (changed or progressed):
                continue
            self._shown[task.id] = task.state
            if task.note:
                self._last_progress = now
            seconds = f" ({task.seconds:.1f} s)" if task.seconds is not None and task.state in FINISHED else ""
            note = f"  {task.note}" if task.note else ""
            self._console.print(f"{now:5.0f} s  {task.id:20} {task.state}{seconds}{note}", markup=False, soft_wrap=True)


def _table(tasks: list[TaskView]) -> Table:
    table = Table.grid(padding=(0, 2))
    for task in tasks:
        seconds = f"{task.seconds:.0f} s" if task.seconds is not None else ""
        table.add_row(MARKS.get(task.state, " "), task.id, task.state.replace("_", " "), seconds, task.note)
    return table


def _topological(tasks: list[dict[str, Any]]) -> list[str]:
    sorter = TopologicalSorter({task["task_id"]: set() for task in tasks})
    for task in tasks:
        for downstream in task["downstream_task_ids"]:
            sorter.add(downstream, task["task_id"])
    return list(sorter.static_order())


def failure(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """Return the failed task's error message: that of the exception that ended it."""
    failed = [task for task in api.tasks(dag_id, run_id) if task["state"] == "failed"]
    if not failed:
        return "the run failed, but no task did; see Airflow."
    first = min(failed, key=lambda task: task["end_date"] or "")
    lines = api.log(dag_id, run_id, first["task_id"], first["try_number"], first["map_index"])
    details = [line["error_detail"][0] for line in lines if line.get("error_detail")]
    reason = details[-1]["exc_value"] if details else next((x["event"] for x in reversed(lines) if x.get("level") == "error"), "")
    return f"{first['task_id']}: {reason or 'it left no message; see its log.'}"
