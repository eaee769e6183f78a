"""`make demo`: the tiny configuration through the DAG `sft`, followed from the terminal, with a summary at the end."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from talaria.common.errors import UserError
from talaria.devstack.airflow_client import AirflowApi
from talaria.devstack.follow_run import Follower, TaskView, failure, follow
from talaria.devstack.installation import Home, Ports
from talaria.devstack.services import say_where, up
from talaria.evaluation.scores import scores

DAG = "sft"
CONFIG = "tiny"
TRAIN, EVALUATE, REGISTER, PROMOTE = "model.train", "model.evaluate", "registry.register", "registry.promote"


def demo(home: Home, console: Console) -> int:
    """Run the demo and return the exit code: 0 if the run succeeded. Raises UserError if the services or the DAG do not load."""
    began, installed = _installation()
    ports = up(home, console)
    ready = time.time()
    with AirflowApi(ports.airflow_url, "admin", home.password()) as api:
        _wait_for_dag(api)
        api.unpause(DAG)
        run_id = f"demo_{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
        page = f"{ports.airflow_url}/dags/{DAG}/runs/{run_id}"
        console.print(f"Triggering {DAG} with configs/{CONFIG}.yaml; its page: {page}", soft_wrap=True)
        for earlier in api.unfinished_runs(DAG)[:1]:
            console.print(f"This run waits for an earlier one to end: {earlier}")
        api.trigger(DAG, run_id, {"config": CONFIG})
        state, tasks = follow(Follower(api, DAG, run_id, home.store), console)
        if state != "success":
            Console(stderr=True, highlight=False).print(f"talaria: {failure(api, DAG, run_id)}", markup=False, soft_wrap=True)
            return 1
        results = {name: api.xcom(DAG, run_id, name) for name in (TRAIN, EVALUATE, REGISTER, PROMOTE)}
    now = time.time()
    _summary(console, tasks, results)
    parts = [("installation", installed), ("services", ready - began - installed), ("the run", now - ready)]
    went = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts if seconds)
    console.print(f"Done in {now - began:.0f} s: {went}.")
    say_where(home, ports, console)
    console.print("Next")
    for line in next_steps(home, ports, results[TRAIN]["key"]):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    return 0


def _installation() -> tuple[float, float]:
    """Return when `make` began (now, where it was not make) and how many seconds of it went into installing."""
    began = float(os.environ.get("TALARIA_MAKE_BEGAN") or time.time())
    try:
        record = json.loads(Path(sys.prefix, "talaria-installed.json").read_text())
    except FileNotFoundError:  # not installed by make
        return began, 0.0
    return began, record["seconds"] if record["finished"] >= began else 0.0


def next_steps(home: Home, ports: Ports, train_key: str) -> tuple[str, ...]:
    """Return lines for a shell, each of which works as it is."""
    shell = f". {shlex.quote(str(home.root / 'env'))}"
    own = "--set name=mine --set download.source=local --set download.path=chats/data/sample.json"
    return (
        f"{shell}   # the next lines want this once in a shell",
        f'talaria chat models:/{CONFIG}@champion --prompt "3 + 8 = ?"   # without --prompt: a conversation',
        f"{shell} && talaria serve models:/{CONFIG}@champion   # at http://127.0.0.1:8000/v1; docs/serving.md asks it",
        f"talaria watch {train_key[:8]}   # the curve; as a page, in Airflow: {ports.airflow_url}/plugin/training",
        f"talaria download {CONFIG} --output chats && talaria run {CONFIG} {own}   # your own file in its place",
    )


def _wait_for_dag(api: AirflowApi, timeout: float = 120.0) -> None:
    """Wait until the dag-processor has parsed the DAG file."""
    start = time.monotonic()
    while not api.has_dag(DAG):
        for error in api.import_errors():
            raise UserError(f"{error['filename']} does not load: {error['stack_trace'].strip().splitlines()[-1]}")
        if time.monotonic() - start > timeout:
            raise UserError(f"Airflow has not loaded the DAG {DAG} after {timeout:.0f} s; see .talaria/logs/dag-processor.log.")
        time.sleep(0.5)


def _summary(console: Console, tasks: list[TaskView], results: dict[str, Any]) -> None:
    registered, promoted = results[REGISTER], results[PROMOTE]
    table = Table.grid(padding=(0, 2))
    for task in tasks:
        if task.state == "success":
            table.add_row(task.id, f"{task.seconds or 0:.1f} s", task.note)
    console.print(table)
    alias = "champion" if promoted["champion"] == promoted["version"] else "challenger"
    results_table = Table.grid(padding=(0, 2))
    results_table.add_row("", "base", "tuned")
    for row in scores(results[EVALUATE]["facts"]):
        results_table.add_row(*row)
    console.print(results_table)
    verdict = f"Model {registered['model']} version {promoted['version']}, alias {alias}: {promoted['reason']}"
    console.print(verdict, markup=False, soft_wrap=True)
    console.print(f"Its page in MLflow: {registered['model_url']}", markup=False, soft_wrap=True)
