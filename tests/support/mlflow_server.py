"""A real MLflow server for tests: SQLite, one worker, a free loopback port."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.server_process import ServerProcess


class MlflowServer(ServerProcess):
    """Starts on `start`, where it does not run yet; ends on `stop`. Every start has the same port and database."""

    def __init__(self, folder: Path, artifact_root: str | None = None) -> None:
        """`artifact_root`: where new experiments keep their files; None: with the server, which hands them on."""
        super().__init__(folder / "server.log")
        self.folder, self.uri, self.artifact_root = folder, self.url, artifact_root

    def start(self) -> None:
        self.begin_start()
        self.wait("/health")

    def begin_start(self) -> None:
        """Start it, for who has other things to do until it answers."""
        if self.process is not None:
            return
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        if self.artifact_root:
            env["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = self.artifact_root
        self.begin(command, env, self.folder)
