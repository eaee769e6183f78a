"""docker-compose.yaml brought up without a container engine: every service a plain process with the command, environment,
user, volumes, dependencies and healthcheck written there, on an address of its own behind its own name.

It needs root, iproute2 and Debian's postgresql and redis-server. What an image brings is stood in for by this machine:
Python and its packages by the environment the tests run in, PostgreSQL and Redis by Debian's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CONTAINER = Path(__file__).with_name("container.py")
SUBNET = "10.213.87"  # on a bridge of this test's own
BRIDGE = "talaria-test"
USER = 50000
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), "")  # Debian keeps it off the PATH


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Compose's ${NAME}, ${NAME:-default}, ${NAME:?message} and $$, by the compose specification."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, operator, rest = match["name"], match["operator"], match["rest"] or ""
        found = values.get(name, "")
        if not found and operator == ":?":
            raise KeyError(f"{name}: {rest}")
        return found or (interpolate(rest, values) if operator == ":-" else "")

    return re.sub(r"(?P<escaped>\$\$)|\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}", value, text)


def load_compose(path: Path, values: Mapping[str, str]) -> dict[str, Any]:
    """The compose file with anchors, merges and variables resolved."""

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: resolve(item) for key, item in node.items()}
        if isinstance(node, list):
            return [resolve(item) for item in node]
        return interpolate(node, values) if isinstance(node, str) else node

    document: dict[str, Any] = resolve(yaml.safe_load(path.read_text()))
    return document


@dataclass
class Service:
    name: str
    hostname: str
    address: str
    document: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Engine:
    """Up to 200 services on one bridge. Use as a context manager: leaving it stops all and removes what it made."""

    def __init__(
        self,
        work: Path,
        values: Mapping[str, str],
        *,
        overrides: Mapping[str, Mapping[str, str]] | None = None,
        sizes: Mapping[str, str] | None = None,
    ) -> None:
        """`overrides`: environment by service. `sizes`: volumes that are disks of their own, of so many bytes ("300m")."""
        self.work = work
        self.document = load_compose(REPOSITORY / "docker-compose.yaml", values)
        self.overrides = overrides or {}
        self.sizes = sizes or {}
        self.services: dict[str, Service] = {}
        self.logs = work / "logs"

    def __enter__(self) -> Engine:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._commands()
        remove_network()  # what a killed session left
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name in self.document["services"]:
            self.add(name, name)
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(list(self.services.values())):
            with contextlib.suppress(Exception):
                self.stop(service.name, grace=5)
        remove_network()
        for name in self.sizes:
            run("umount", "--lazy", str(self.work / "volumes" / name), check=False)

    def add(self, name: str, like: str) -> Service:
        """A service of the file under a name of its own: a second machine with the same role has the same entry."""
        address = f"{SUBNET}.{len(self.services) + 2}"
        service = Service(name, name, address, self.document["services"][like])
        self.services[name] = service
        inside = f"veth{len(self.services)}"
        run("ip", "netns", "add", namespace(name))
        run("ip", "link", "add", f"{inside}h", "type", "veth", "peer", "name", inside)
        run("ip", "link", "set", f"{inside}h", "master", BRIDGE, "up")
        run("ip", "link", "set", inside, "netns", namespace(name))
        for command in (
            ["addr", "add", f"{address}/24", "dev", inside],
            ["link", "set", inside, "up"],
            ["link", "set", "lo", "up"],
        ):
            run("ip", "-n", namespace(name), *command)
        hosts = "127.0.0.1 localhost\n" + "".join(f"{other.address} {other.hostname}\n" for other in self.services.values())
        (self.work / "hosts").write_text(hosts)  # one file, mounted everywhere
        return service

    def url(self, name: str, port: int) -> str:
        return f"http://{self.services[name].address}:{port}"

    def up(self, *names: str, timeout: float = 240) -> None:
        """Start services in the order of their dependencies and wait until each is healthy (or, for init, done)."""
        for name in names:
            for dependency, condition in self.services[name].document.get("depends_on", {}).items():
                if self.services[dependency].process is None:
                    self.up(dependency, timeout=timeout)
                self.wait(dependency, condition["condition"], timeout)
            if self.services[name].process is None:
                self.start(name)
        for name in names:
            healthy = "service_healthy" if "healthcheck" in self.services[name].document else "service_completed_successfully"
            self.wait(name, healthy, timeout)

    def start(self, name: str) -> None:
        service = self.services[name]
        command, environment = self._command(service)
        service.process = self._run(service, command, environment, self.logs / f"{name}.log")

    def wait(self, name: str, condition: str, timeout: float) -> None:
        service, deadline = self.services[name], time.monotonic() + timeout
        while True:
            assert service.process is not None
            code = service.process.poll()
            if condition == "service_completed_successfully":
                if code == 0:
                    return
                assert code is None, f"{name} exited with {code}:\n{self.tail(name)}"
            else:
                assert code is None, f"{name} exited with {code}:\n{self.tail(name)}"
                if self.is_healthy(name):
                    return
            assert time.monotonic() < deadline, f"{name} not {condition} in {timeout} s:\n{self.tail(name)}"
            time.sleep(0.5)

    def is_healthy(self, name: str) -> bool:
        """Run the service's own healthcheck where the service runs."""
        test = self.services[name].document["healthcheck"]["test"]
        command = test[1:] if test[0] == "CMD" else ["sh", "-c", test[1]]
        return self.execute(name, command).returncode == 0

    def execute(self, name: str, command: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec` does: a command beside the service, in its namespaces, as its user."""
        service = self.services[name]
        assert service.process is not None, f"{name} does not run"
        user = self._user(service)
        enter = ["nsenter", f"--target={service.process.pid}", "--mount", "--net", "--uts", "--root", "--wdns=/opt/talaria"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return subprocess.run(
            [*enter, "--", *become, "--", *command],
            env=service.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, grace: float = 30) -> None:
        """End a service and everything in its session: SIGTERM and, after the grace, SIGKILL; or SIGKILL at once."""
        process = self.services[name].process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        for pid in pids_of(namespace(name)):  # what a container's end takes with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)
        self.services[name].process = None

    def restart(self, name: str, timeout: float = 120) -> None:
        self.stop(name)
        self.up(name, timeout=timeout)

    def tail(self, name: str, lines: int = 40) -> str:
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    def pids(self) -> list[int]:
        """Every process of every service."""
        return [pid for service in self.services.values() for pid in pids_of(namespace(service.name))]

    def volume(self, name: str, owner: int = USER) -> Path:
        path = self.work / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            if name in self.sizes:
                run("mount", "-t", "tmpfs", "-o", f"size={self.sizes[name]}", "tmpfs", str(path))
            os.chown(path, owner, owner)
        return path

    def _run(self, service: Service, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        document = service.document
        user = self._user(service)
        mounts = [
            [str(self.work / "hosts"), "/etc/hosts", "ro"],
            [str(REPOSITORY), "/opt/talaria", "ro"],
            [str(self.work / "bin"), "/usr/local/image", "ro"],
        ]
        for entry in document.get("volumes", []):
            source, target, *mode = entry.split(":")
            path = (REPOSITORY / source).resolve() if source.startswith(".") else self.volume(source, user)
            mounts.append([str(path), target, *(mode or ["rw"])])
        spec = {
            "network": namespace(service.name),
            "hostname": service.hostname,
            "layer": str(self.work / "layers" / f"{service.name}-{time.monotonic_ns()}"),
            "opened": [sys.base_prefix, sys.prefix],
            "mounts": mounts,
            "read_only": document.get("read_only", False),
            "tmpfs": document.get("tmpfs", []),
            "workdir": "/opt/talaria" if "user" in document else "/",
            "uid": user,
            "gid": user,
            "drop": document.get("cap_drop") == ["ALL"],
            "environment": environment,
            "command": command,
        }
        path = self.work / f"spec-{service.name}-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(spec))
        path.chmod(0o600)
        with log.open("ab") as out:
            return subprocess.Popen([sys.executable, str(CONTAINER), str(path)], stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def _user(self, service: Service) -> int:
        """The file's user; the official images of PostgreSQL and Redis run as users of their own."""
        given = str(service.document.get("user", "")).split(":")[0]
        return int(given) if given else pwd.getpwnam("postgres").pw_uid

    def _command(self, service: Service) -> tuple[list[str], dict[str, str]]:
        """The command of the file, or of the image's entry point where the file leaves it to the image."""
        document = service.document
        environment = {"HOME": "/tmp", "PGHOST": "/tmp"}  # of the images of PostgreSQL and Redis
        environment |= {key: str(value) for key, value in document.get("environment", {}).items()}
        environment |= dict(self.overrides.get(service.name, {}))
        environment |= {
            "PATH": f"/usr/local/image:/opt/talaria/deploy:{POSTGRES}:/usr/local/bin:/usr/bin:/bin",
            "HOSTNAME": service.hostname,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        service.environment = environment
        command = document.get("command") or ["postgres-entrypoint"]
        return list(command), environment

    def _commands(self) -> None:
        """Commands that the image has on its PATH, made from the environment that the tests run in."""
        folder = self.work / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        modules = {"airflow": "-m airflow", "mlflow": "-m mlflow", "celery": "-m celery", "python": ""}
        inside = Path(sys.prefix)
        if inside.is_relative_to(REPOSITORY):
            inside = Path("/opt/talaria") / inside.relative_to(REPOSITORY)
        for name, module in modules.items():
            script(folder / name, f'exec {inside}/bin/python {module} "$@"')
        script(
            folder / "postgres-entrypoint",
            """data=/var/lib/postgresql/data/main
fresh=; [ -d $data ] || fresh=1
if [ "$fresh" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/pw-$$
    initdb -D $data -E UTF8 --locale=C.UTF-8 -U "$POSTGRES_USER" --pwfile=/tmp/pw-$$ -A scram-sha-256 >/dev/null; rm /tmp/pw-$$
    echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
    sed -i '1i local all all trust' $data/pg_hba.conf
    pg_ctl -D $data -o "-k /tmp -c listen_addresses=''" -w start >/dev/null
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    for f in /docker-entrypoint-initdb.d/*.sh; do sh $f; done
    pg_ctl -D $data -m fast -w stop >/dev/null
fi
exec postgres -D $data -k /tmp -c listen_addresses='*'""",
        )


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\nset -e\n{body}\n")
    path.chmod(0o755)


def namespace(name: str) -> str:
    return f"talaria-{name}"


def remove_network() -> None:
    for name in run("ip", "netns", "list").split():
        if name.startswith(namespace("")):
            for pid in pids_of(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run("ip", "netns", "del", name)
    for link in json.loads(run("ip", "-json", "link", "show", "master", BRIDGE, check=False) or "[]"):
        run("ip", "link", "del", link["ifname"], check=False)  # with its namespace's end, unless that was first
    run("ip", "link", "del", BRIDGE, check=False)


def pids_of(network: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", network, check=False).split()]


def run(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout
