"""A server for tests, in a process of its own on a free loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """Every start has the same port."""

    def __init__(self, log: Path) -> None:
        self.log, self.port = log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], health: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start the command and wait until it answers at the path `health`."""
        self.begin(command, env, cwd)
        self.wait(health)

    def begin(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=cwd, start_new_session=True)

    def wait(self, health: str) -> None:
        assert self.process is not None
        for _ in range(3000):  # a busy machine may be slow; a server that cannot start ends by itself
            try:
                with urllib.request.urlopen(f"{self.url}{health}", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError(f"{type(self).__name__} did not start within five minutes")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
