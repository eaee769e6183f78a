"""The folder of a local installation: where everything is, on which ports, with which secrets and environment.

Everything lives under one folder (`.talaria/`, or TALARIA_HOME): removing it removes every trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import socket
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import read_object, write_atomically

REPOSITORY = Path(__file__).resolve().parents[3]
MARK = "TALARIA_STACK"
"""Environment variable that every process of the stack inherits; its value is the home folder. A pid can be reused and a
session can be left, but this is how `down` finds every descendant of a service, and nothing else."""
SERVICE = "TALARIA_SERVICE"
"""Environment variable with the service that a process descends from."""


@dataclass(frozen=True)
class Home:
    root: Path

    @classmethod
    def default(cls) -> Home:
        return cls(Path(os.environ.get("TALARIA_HOME") or REPOSITORY / ".talaria").absolute())

    @property
    def airflow(self) -> Path:
        return self.root / "airflow"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def store(self) -> Path:
        return Path(os.environ.get("TALARIA_STORE") or self.root / "store").absolute()

    @property
    def passwords(self) -> Path:
        return self.airflow / "passwords.json"

    def create(self) -> None:
        if not (REPOSITORY / "dags").is_dir():
            raise UserError(f"{REPOSITORY}: no dags/ folder here; `up` runs from a clone of the repository (pip install -e).")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.airflow, self.mlflow, self.logs, self.store):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.passwords.exists():
            _write_private(self.passwords, json.dumps({"admin": secrets.token_urlsafe(9)}) + "\n")

    def password(self) -> str:
        return str(json.loads(self.passwords.read_text())["admin"])

    def secrets(self) -> dict[str, str]:
        """Return the keys that all components share; they are generated once and stored."""
        path = self.root / "secrets.json"
        if not path.exists():
            fernet = urlsafe_b64encode(os.urandom(32)).decode()
            keys = {"fernet": fernet, "jwt": secrets.token_hex(48), "session": secrets.token_hex(32)}
            _write_private(path, json.dumps(keys))
        return dict(json.loads(path.read_text()))

    def choices(self) -> dict[str, str]:
        """Return what the person who started this installation chose by environment variables (REMEMBERED), now or earlier.

        A variable that is set counts, and is kept for the next start from another shell; set but empty, it is forgotten.
        """
        path = self.root / "choices.json"
        before = read_object(path)
        chosen = {name: os.environ.get(name, before.get(name, "")) for name in REMEMBERED}
        if folder := chosen["TALARIA_CONFIGS"]:
            chosen["TALARIA_CONFIGS"] = os.path.abspath(folder)
        chosen = {name: value for name, value in chosen.items() if value}
        if chosen != before:
            path.unlink(missing_ok=True)
            _write_private(path, json.dumps(chosen))  # the webhook's address is a secret
        return chosen


REMEMBERED = ("TALARIA_CONFIG", "TALARIA_CONFIGS", "TALARIA_WEBHOOK", "TALARIA_ALLOW_CUSTOM_CODE")


@dataclass(frozen=True)
class Ports:
    airflow: int
    mlflow: int

    @classmethod
    def recorded(cls, home: Home) -> Ports | None:
        try:
            return cls(**json.loads((home.root / "ports.json").read_text()))
        except FileNotFoundError:
            return None

    def record(self, home: Home) -> None:
        write_atomically(home.root / "ports.json", json.dumps({"airflow": self.airflow, "mlflow": self.mlflow}))

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.airflow}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"


def choose_ports(before: Ports | None) -> Ports:
    """Return free ports of the loopback interface: the previous ones if they are free, so that bookmarks stay valid."""
    with contextlib.ExitStack() as held:
        airflow = _bind(held, before.airflow if before else 0)
        mlflow = _bind(held, before.mlflow if before else 0)
        return Ports(airflow, mlflow)


def _bind(held: contextlib.ExitStack, wanted: int) -> int:
    probe = held.enter_context(socket.socket())
    # as the servers do: connections of the one before, which the kernel still remembers, do not hold the port
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", wanted))
    except OSError:
        probe = held.enter_context(socket.socket())
        probe.bind(("127.0.0.1", 0))
    return int(probe.getsockname()[1])


def environment(home: Home, ports: Ports) -> dict[str, str]:
    """Return the variables that point any `airflow` or `talaria` command at this installation."""
    keys = home.secrets()
    return {
        "TALARIA_STORE": str(home.store),
        "TALARIA_CONFIGS": str(REPOSITORY / "configs"),
        **home.choices(),
        "MLFLOW_TRACKING_URI": ports.mlflow_url,
        "AIRFLOW_HOME": str(home.airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{ports.airflow_url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home.passwords),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home.airflow}/airflow.db",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(ports.airflow),
        "AIRFLOW__API__BASE_URL": ports.airflow_url,
        "AIRFLOW__API__SECRET_KEY": keys["session"],
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home.airflow / "logs"),
    }


TUNING: Mapping[str, str] = {
    # One user, one machine: few processes, a scheduler that looks often, nothing that phones home.
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    # as in docker-compose.yaml, which says why: an API server that is away for minutes ends no training
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "300",
    "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": "90000",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    # what services start in turn (MLflow its uvicorn) imports nothing from the folder it runs in either, as they do not by -P
    "PYTHONSAFEPATH": "1",
}


def service_environment(home: Home, ports: Ports, service: str) -> dict[str, str]:
    """Return a service's environment. The caller's environment overrides settings of TUNING, but not addresses and secrets."""
    around = dict(os.environ)
    no_proxy = ",".join(filter(None, (around.get("NO_PROXY") or around.get("no_proxy"), "127.0.0.1,localhost")))
    return {
        **TUNING,
        **around,
        **environment(home, ports),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{around.get('PATH', '')}",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        MARK: str(home.root),
        SERVICE: service,
        "SPT_NOENV": "1",  # setproctitle would otherwise write titles over the environment, and with it the mark
    }


def write_shell_file(home: Home, ports: Ports) -> Path:
    """Write the file `env`, which points a shell's `airflow` and `talaria` at this installation."""
    path = home.root / "env"
    values = environment(home, ports) | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    _write_private(path, "\n".join(lines) + "\n")
    return path


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
