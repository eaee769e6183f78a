"""`make up` and `make down` on the real services."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from talaria.common.errors import UserError
from talaria.devstack import services
from talaria.devstack.installation import Home, Ports
from talaria.devstack.processes import descendants, running
from talaria.devstack.services import SCHEDULER, SERVICES, down, up

from tests.support.airflow_env import Stack
from tests.support.process_trees import eventually

QUIET = Console(quiet=True)
pytestmark = pytest.mark.timeout(600)


def pids(home: Home) -> dict[str, int]:
    return {name: process.pid for name in SERVICES if (process := running(home, name))}


def test_up_again_changes_nothing_and_mends_what_has_died(stack: Stack) -> None:
    before = pids(stack.home)
    assert set(before) == set(SERVICES)
    assert up(stack.home, QUIET) == stack.ports
    assert pids(stack.home) == before

    os.kill(before[SCHEDULER], signal.SIGKILL)
    eventually(lambda: running(stack.home, SCHEDULER) is None)
    assert up(stack.home, QUIET) == stack.ports
    after = pids(stack.home)
    assert after[SCHEDULER] != before[SCHEDULER]
    assert {name: pid for name, pid in after.items() if name != SCHEDULER} == {
        name: pid for name, pid in before.items() if name != SCHEDULER
    }
    assert stack.api.call("GET", "/api/v2/pools/gpu")["slots"] == 1
    assert httpx.get(f"{stack.ports.mlflow_url}/health").is_success


def test_the_password_is_asked_for(stack: Stack) -> None:
    login = {"username": "admin", "password": "a guess"}
    assert httpx.post(f"{stack.ports.airflow_url}/auth/token", json=login).status_code == 401
    assert httpx.get(f"{stack.ports.airflow_url}/api/v2/dags").status_code == 401


def test_down_leaves_nothing_and_up_comes_back_at_the_same_addresses(stack: Stack) -> None:
    down(stack.home, QUIET)
    assert descendants(stack.home) == []
    assert pids(stack.home) == {}
    down(stack.home, QUIET)  # nothing to do is no mistake
    assert Ports.recorded(stack.home) == stack.ports


def test_a_service_that_cannot_start_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talaria.devstack.services.commands", lambda home, ports: {name: ["false"] for name in SERVICES})
    monkeypatch.setattr("talaria.devstack.services._migrate", lambda home, ports: None)  # seconds, and not what is asked here
    home = Home(tmp_path / "talaria")
    with pytest.raises(UserError, match=r"mlflow stopped while starting; see .*mlflow\.log"):
        up(home, QUIET)
    assert descendants(home) == []


def test_airflows_database_is_made_again_where_a_kill_left_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "talaria")
    home.create()
    database, seen = home.airflow / "airflow.db", []
    for half in (database, home.airflow / "airflow.db-journal"):
        half.write_text("half")

    def migrate(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append([path.name for path in home.airflow.glob("airflow.db*")])
        database.write_text("whole")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("talaria.devstack.services.subprocess.run", migrate)
    for _ in range(2):
        services._migrate(home, Ports(1, 2))
    assert seen == [[]], "made once, from nothing"
    assert database.read_text() == "whole"
