"""docker-compose.yaml brought up without a container engine: every service a plain process with the command, environment,
user, volumes, dependencies and healthcheck written there, on an address of its own behind its own name.

It needs root, iproute2 and Debian's postgresql and redis-server. What an image brings is stood in for by this machine:
Python, its packages and SeaweedFS by the environment the tests run in, PostgreSQL and Redis by Debian's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stack import image, network
from tests.stack.compose import load_compose

REPOSITORY = Path(__file__).parents[2]
CONTAINER = Path(__file__).with_name("container.py")
USER = 50000
FIRST_DELAY, LAST_DELAY, LASTING = 0.1, 60.0, 10.0
"""Seconds: how long Docker waits before a restart, twice as long each time, from the first again after a start that lasted."""


@dataclass
class Service:
    name: str
    hostname: str
    address: str
    document: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    """None: never started, or stopped on purpose."""
    restarts: int = 0
    """Since it was healthy last."""
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float | None = None
    """When it is started again, where it ended by itself."""
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
        self.overrides = dict(overrides or {})
        self.sizes = sizes or {}
        self.services: dict[str, Service] = {}
        self.logs = work / "logs"
        self._lock = threading.RLock()  # over a service's start and end
        self._leaving = threading.Event()
        self._keeper = threading.Thread(target=self._keep_up, name="restart policy")

    def __enter__(self) -> Engine:
        self.logs.mkdir(parents=True, exist_ok=True)
        image.make_commands(self.work / "bin")
        network.make()
        for name in self.document["services"]:
            self.add(name, name)
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._keeper.join()
        for service in reversed(list(self.services.values())):
            with contextlib.suppress(Exception):
                self.stop(service.name, grace=5)
        network.remove()
        for name in self.sizes:
            network.run("umount", "--lazy", str(self.work / "volumes" / name), check=False)

    def add(self, name: str, like: str) -> Service:
        """A service of the file under a name of its own: a second machine with the same role has the same entry."""
        service = Service(name, name, network.attach(name, len(self.services)), self.document["services"][like])
        self.services[name] = service
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
        with self._lock:
            service.process = self._run(service, command, environment, self.logs / f"{name}.log")
            service.started, service.due = time.monotonic(), None

    def _keep_up(self) -> None:
        """The restart policy: what ended by itself is started again, what was stopped is not."""
        while not self._leaving.wait(0.1):
            for service in list(self.services.values()):
                with self._lock:
                    ended = service.process is not None and service.process.poll() is not None
                    if ended and service.document.get("restart", "no") != "no":
                        self._restart_when_due(service)

    def _restart_when_due(self, service: Service) -> None:
        now = time.monotonic()
        if service.due is None:
            self._end_rest(service)
            service.delay = FIRST_DELAY if now - service.started > LASTING else min(2 * service.delay, LAST_DELAY)
            service.due = now + service.delay
        elif now >= service.due:
            service.restarts += 1
            self.start(service.name)

    def wait(self, name: str, condition: str, timeout: float) -> None:
        service, deadline = self.services[name], time.monotonic() + timeout
        while True:
            assert service.process is not None
            code = service.process.poll()
            if condition == "service_completed_successfully":
                if code == 0:
                    return
                assert code is None, f"{name} exited with {code}:\n{self.tail(name)}"
            elif code is None and self.is_healthy(name):
                service.restarts = 0
                return
            assert service.restarts < 20, f"{name} exited with {code} again and again:\n{self.tail(name)}"
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
        service = self.services[name]
        with self._lock:
            process, service.process = service.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        self._end_rest(service)
        process.wait(30)

    def _end_rest(self, service: Service) -> None:
        """What a container's end takes with it."""
        for pid in network.pids_of(service.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restart(self, name: str, timeout: float = 120) -> None:
        self.stop(name)
        self.up(name, timeout=timeout)

    @contextlib.contextmanager
    def overriding(self, name: str, environment: Mapping[str, str]) -> Iterator[None]:
        """The service restarted with more in its environment, and restarted without it at the end."""
        before = self.overrides.get(name, {})
        self.overrides[name] = {**before, **environment}
        self.restart(name)
        try:
            yield
        finally:
            self.overrides[name] = before
            self.restart(name)

    def tail(self, name: str, lines: int = 40) -> str:
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    def pids(self) -> list[int]:
        """Every process of every service."""
        return [pid for service in self.services.values() for pid in network.pids_of(service.name)]

    def volume(self, name: str, owner: int = USER) -> Path:
        path = self.work / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            if name in self.sizes:
                network.run("mount", "-t", "tmpfs", "-o", f"size={self.sizes[name]}", "tmpfs", str(path))
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
            "network": network.namespace(service.name),
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
            "PATH": f"/usr/local/image:/opt/talaria/deploy:{image.POSTGRES}:/usr/local/bin:/usr/bin:/bin",
            "HOSTNAME": service.hostname,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        service.environment = {name: value for name, value in environment.items() if name != "LD_PRELOAD"}
        command = [*document.get("entrypoint", []), *document.get("command", [])] or ["postgres-entrypoint"]
        return command, environment
