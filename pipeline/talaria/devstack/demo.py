"""`make demo`: the tiny configuration through the DAG `sft`, followed from the terminal, with a summary at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from talaria.common.errors import UserError
from talaria.devstack.airflow_client import AirflowApi
from talaria.devstack.follow_run import Follower, TaskView, failure, follow
from talaria.devstack.installation import Home, Ports, service_environment
from talaria.devstack.services import say_where, up

DAG = "sft"
CONFIG = "tiny"
EVALUATE, REGISTER, PROMOTE = "model.evaluate", "registry.register", "registry.promote"


def demo(home: Home, console: Console) -> int:
    """Run the demo and return the exit code: 0 if the run succeeded. Raises UserError if the services or the DAG do not load."""
    start = time.monotonic()
    ports = up(home, console)
    with AirflowApi(ports.airflow_url, "admin", home.password()) as api:
        _wait_for_dag(api)
        api.unpause(DAG)
        run_id = f"demo_{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
        page = f"{ports.airflow_url}/dags/{DAG}/runs/{run_id}"
        console.print(f"Triggering {DAG} with configs/{CONFIG}.yaml; its page: {page}", soft_wrap=True)
        for earlier in api.unfinished_runs(DAG)[:1]:
            console.print(f"This run waits for an earlier one to end: {earlier}")
        _trigger(home, ports, run_id)
        state, tasks = follow(Follower(api, DAG, run_id, home.store), console)
        if state != "success":
            Console(stderr=True, highlight=False).print(f"talaria: {failure(api, DAG, run_id)}", markup=False, soft_wrap=True)
            return 1
        results = {name: api.xcom(DAG, run_id, name) for name in (EVALUATE, REGISTER, PROMOTE)}
    _summary(console, tasks, results, time.monotonic() - start)
    say_where(home, ports, console)
    return 0


def _wait_for_dag(api: AirflowApi, timeout: float = 120.0) -> None:
    """Wait until the dag-processor has parsed the DAG file."""
    start = time.monotonic()
    while not api.has_dag(DAG):
        for error in api.import_errors():
            raise UserError(f"{error['filename']} does not load: {error['stack_trace'].strip().splitlines()[-1]}")
        if time.monotonic() - start > timeout:
            raise UserError(f"Airflow has not loaded the DAG {DAG} after {timeout:.0f} s; see .talaria/logs/dag-processor.log.")
        time.sleep(0.5)


def _trigger(home: Home, ports: Ports, run_id: str) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "airflow",
        "dags",
        "trigger",
        DAG,
        "--run-id",
        run_id,
        "--conf",
        json.dumps({"config": CONFIG}),
    ]
    done = subprocess.run(command, env=service_environment(home, ports, "trigger"), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"airflow dags trigger failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")


def _summary(console: Console, tasks: list[TaskView], results: dict[str, Any], seconds: float) -> None:
    facts, registered, promoted = (results[name] for name in (EVALUATE, REGISTER, PROMOTE))
    measured = facts["facts"]
    table = Table.grid(padding=(0, 2))
    for task in tasks:
        if task.state == "success":
            table.add_row(task.id, f"{task.seconds or 0:.1f} s", task.note)
    console.print(table)
    alias = "champion" if promoted["champion"] == promoted["version"] else "challenger"
    results_table = Table.grid(padding=(0, 2))
    results_table.add_row("", "base", "tuned")
    results_table.add_row("held-out loss", _number(measured["base_heldout_loss"]), _number(measured["heldout_loss"]))
    results_table.add_row("exact match", _number(measured["base_exact_match"]), _number(measured["exact_match"]))
    console.print(results_table)
    verdict = f"Model {registered['model']} version {promoted['version']}, alias {alias}: {promoted['reason']}"
    console.print(verdict, markup=False, soft_wrap=True)
    reused = sum(task.note == "reused" for task in tasks)
    again = f", {reused} stages reused" if reused else ""
    console.print(f"Done in {seconds:.0f} s{again}.")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
