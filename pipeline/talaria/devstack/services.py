"""`make up` and `make down`: Airflow and an MLflow server on free loopback ports, with everything under one folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
from rich.console import Console

from talaria.common.errors import UserError
from talaria.common.locks import Busy, locked
from talaria.devstack.airflow_client import AirflowApi, is_up
from talaria.devstack.installation import Home, Ports, choose_ports, service_environment, write_shell_file
from talaria.devstack.processes import Service, descendants, kill, running, start, stop

SCHEDULER = "scheduler"
"""Stopped first and started last: its tasks need the others to record how they end."""
AIRFLOW = ("api-server", "dag-processor", "triggerer", SCHEDULER)
SERVICES = ("mlflow", *AIRFLOW)
SAVE_SECONDS = 330.0
"""How long `down` waits for a training run: train.stop_grace's default and a margin for the reaper."""


def up(home: Home, console: Console, timeout: float = 180.0) -> Ports:
    """Start the services that do not run and wait until all answer. Raises UserError with the log of a service that fails."""
    home.create()
    with _locked(home):
        before = Ports.recorded(home)
        missing = [name for name in SERVICES if before is None or running(home, name) is None]
        if missing:
            stop(home, missing, patience=SAVE_SECONDS)  # what a service that died has left behind
        ports = before if before and len(missing) < len(SERVICES) else choose_ports(before)
        ports.record(home)
        write_shell_file(home, ports)
        began = datetime.now(UTC)
        with console.status("Starting...") as status:
            _start(home, ports, missing, status.update)
            _wait_until_ready(home, ports, began if SCHEDULER in missing else None, timeout, console, status.update)
        with AirflowApi(ports.airflow_url, "admin", home.password()) as api:
            api.ensure_pool("gpu", 1, "One slot is one node's accelerators; training takes one.")
    return ports


def down(home: Home, console: Console) -> None:
    """Stop every process that `up` started and everything those started."""
    if not home.root.is_dir() or not descendants(home):
        console.print("Nothing is running.")
        return
    with _locked(home), console.status("Stopping..."):
        said: list[str] = []

        def saving() -> None:
            if not said:
                said.append("A training run saves a checkpoint; after `make up` its task goes on from there.")
                console.print(said[0])

        stop(home, [SCHEDULER], SAVE_SECONDS, saving)
        stop(home, ["dag-processor", "triggerer"], patience=15)  # they, too, have a last word for the api-server
        stop(home, SERVICES, patience=15)
        while left := descendants(home):  # a command of somebody's that still runs against these services
            kill(left)
            time.sleep(0.1)
    console.print("Stopped; nothing is left running.")


def say_where(home: Home, ports: Ports, console: Console) -> None:
    """Print addresses, login and what to do next."""
    lines = (
        f"Airflow  {ports.airflow_url}   user admin, password {home.password()}",
        f"MLflow   {ports.mlflow_url}",
        f'Shell    . {shlex.quote(str(home.root / "env"))}   and then: airflow dags trigger sft --conf \'{{"config": "tiny"}}\'',
        "Stop     make down",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def commands(home: Home, ports: Ports) -> dict[str, list[str]]:
    """Return the command line of each service. Log servers are off: they would listen on every interface."""
    python = [sys.executable, "-P", "-m"]
    airflow, database, files = [*python, "airflow"], f"{home.mlflow}/mlflow.db", f"file://{home.mlflow}/artifacts"
    return {
        "mlflow": [
            *(*python, "talaria.tracking.mlflow_database", database, files),
            *("server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(ports.mlflow)),
            *("--backend-store-uri", f"sqlite:///{database}", "--default-artifact-root", files),
            *("--allowed-hosts", "localhost:*,127.0.0.1:*"),
        ],
        "api-server": [*airflow, "api-server"],
        "dag-processor": [*airflow, "dag-processor"],
        "triggerer": [*airflow, "triggerer", "--skip-serve-logs"],
        SCHEDULER: [*airflow, SCHEDULER, "--skip-serve-logs"],
    }


def _start(home: Home, ports: Ports, missing: list[str], say: Callable[[str], None]) -> None:
    lines = commands(home, ports)
    for name in missing:
        if name == AIRFLOW[0]:
            say("Preparing Airflow's database...")
            _migrate(home, ports)
        start(home, ports, Service(name, lines[name]))


def _migrate(home: Home, ports: Ports) -> None:
    """Create or upgrade Airflow's database; skipped when this version of Airflow has done it already."""
    version = importlib.metadata.version("apache-airflow")
    stamp = home.airflow / "migrated"
    if stamp.exists() and stamp.read_text() == version and (home.airflow / "airflow.db").exists():
        return
    if not stamp.exists():  # never finished, so no service has written to it
        for half_made in home.airflow.glob("airflow.db*"):
            half_made.unlink()
    environment = service_environment(home, ports, "migrate")
    command = [sys.executable, "-P", "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, env=environment, cwd=home.root, capture_output=True, text=True)
    (home.logs / "migrate.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise UserError(f"airflow db migrate failed; see {home.logs / 'migrate.log'}: {_last_line(done.stderr)}")
    stamp.write_text(version)


def _wait_until_ready(
    home: Home, ports: Ports, began: datetime | None, timeout: float, console: Console, say: Callable[[str], None]
) -> None:
    """Poll until every service is healthy; `began`: heartbeats from before then belong to an earlier scheduler."""
    start_time = time.monotonic()
    waiting = list(SERVICES)
    while waiting:
        health = _health(ports)
        for name in list(waiting):
            if running(home, name) is None:
                log = home.logs / f"{name}.log"
                raise UserError(f"{name} stopped while starting; see {log}: {_last_line(log.read_text(errors='replace'))}")
            if _is_healthy(name, health, began):
                waiting.remove(name)
                if not console.is_terminal:
                    console.print(f"{name}: ready after {time.monotonic() - start_time:.0f} s")
        if time.monotonic() - start_time > timeout:
            raise UserError(f"{', '.join(waiting)} did not answer within {timeout:.0f} s; see {home.logs}.")
        say(f"Waiting for {', '.join(waiting)}...")
        time.sleep(0.3)


def _health(ports: Ports) -> dict[str, Any]:
    """Return the health reports of MLflow and Airflow; empty if they do not answer yet."""
    health: dict[str, Any] = {"mlflow": is_up(f"{ports.mlflow_url}/health")}
    with contextlib.suppress(httpx.HTTPError, ValueError):
        health |= httpx.get(f"{ports.airflow_url}/api/v2/monitor/health", timeout=5, trust_env=False).json()
    return health


def _is_healthy(name: str, health: dict[str, Any], began: datetime | None) -> bool:
    if name == "mlflow":
        return bool(health["mlflow"])
    if name == "api-server":
        return "metadatabase" in health
    part = name.replace("-", "_")
    state = health.get(part) or {}
    beat = state.get(f"latest_{part}_heartbeat")
    return state.get("status") == "healthy" and (began is None or (beat is not None and datetime.fromisoformat(beat) >= began))


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Let one `up` or `down` work at a time."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(home.root / "lock", wait=0))
        except Busy:
            raise UserError(f"{home.root}: another make up, demo or down is at work here; wait for it.") from None
        yield


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output."
