"""What is started is found again and ended with all it started, and nothing else is touched."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from talaria.devstack.installation import REPOSITORY, Home, Ports, choose_ports, environment, service_environment
from talaria.devstack.processes import Service, descendants, running, start, stop

PORTS = Ports(1, 2)
SLEEP = "import time; time.sleep(600)"
WITH_DAEMON = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""
TRAINS = f"""
import signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {SAVES!r}, sys.argv[1]], start_new_session=True)
def stop(*_):
    rank.terminate()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "talaria")
    home.create()
    yield home
    for process in descendants(home):
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def launch(home: Home, code: str, *arguments: str, ready: bool = True) -> psutil.Process:
    process = start(home, PORTS, Service("service", [sys.executable, "-c", code, *arguments]))
    log = home.logs / "service.log"
    until(lambda: not ready or "ready" in log.read_text())
    return process


def test_stop_ends_children_that_left_the_session(home: Home) -> None:
    launch(home, WITH_DAEMON)
    until(lambda: len(descendants(home)) == 2)
    stop(home, ["service"], patience=0.5)
    assert descendants(home) == []
    assert running(home, "service") is None


def test_a_training_gets_the_time_to_save(home: Home, tmp_path: Path) -> None:
    waits: list[None] = []
    launch(home, TRAINS, str(tmp_path / "checkpoint"))
    stop(home, ["service"], patience=30, on_wait=lambda: waits.append(None))
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert waits
    assert descendants(home) == []


def test_a_dead_service_is_noticed_and_its_orphans_are_ended(home: Home) -> None:
    process = launch(home, WITH_DAEMON)
    until(lambda: len(descendants(home)) == 2)
    process.kill()
    until(lambda: running(home, "service") is None)
    assert len(descendants(home)) == 1
    stop(home, ["service"], patience=0.5)
    assert descendants(home) == []


def test_a_reused_pid_is_left_alone(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as stranger:
        try:
            (home.root / "service.pid.json").write_text(json.dumps({"pid": stranger.pid, "created": 1.0}))
            assert running(home, "service") is None
            stop(home, ["service"], patience=0.5)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_another_installation_is_left_alone(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    other.create()
    launch(other, WITH_DAEMON)
    stop(home, ["service"], patience=0.5)
    assert running(other, "service")
    stop(other, ["service"], patience=0.5)
    assert descendants(other) == []


def test_secrets_are_made_once_and_only_their_owner_reads_them(home: Home) -> None:
    assert home.secrets() == home.secrets()
    assert home.password() == Home(home.root).password()
    for name in ("secrets.json", "airflow/passwords.json"):
        assert (home.root / name).stat().st_mode & 0o077 == 0


def test_what_was_chosen_by_environment_variables_survives_a_restart(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALARIA_CONFIG", "nightly")
    monkeypatch.setenv("TALARIA_WEBHOOK", "http://127.0.0.1:9/secret")
    monkeypatch.setenv("TALARIA_CONFIGS", "configs")
    first = environment(home, PORTS)
    for name in ("TALARIA_CONFIG", "TALARIA_WEBHOOK", "TALARIA_CONFIGS"):
        monkeypatch.delenv(name)
    monkeypatch.chdir("/")
    again = environment(home, PORTS)
    assert (again["TALARIA_CONFIG"], again["TALARIA_WEBHOOK"]) == ("nightly", "http://127.0.0.1:9/secret")
    assert again["TALARIA_CONFIGS"] == first["TALARIA_CONFIGS"]
    assert (home.root / "choices.json").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("TALARIA_WEBHOOK", "")
    assert "TALARIA_WEBHOOK" not in environment(home, PORTS)


def test_an_api_server_that_is_away_ends_no_more_trainings_than_in_production(home: Home) -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())["x-airflow-environment"]
    of_services = service_environment(home, PORTS, "scheduler")
    for name in ("AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS", "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME"):
        assert of_services[name] == compose[name]


def test_a_port_whose_last_connections_linger_stays(home: Home) -> None:
    first = choose_ports(None)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", first.mlflow))
        server.listen()
        client = socket.create_connection(("127.0.0.1", first.mlflow))
        accepted, _ = server.accept()
        accepted.close()  # who closes first keeps the connection in TIME_WAIT
        client.close()
    assert choose_ports(first) == first


def test_ports_stay_unless_they_are_taken(home: Home) -> None:
    first = choose_ports(None)
    assert choose_ports(first) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.airflow))
        second = choose_ports(first)
    assert second.airflow != first.airflow
    assert second.mlflow == first.mlflow
