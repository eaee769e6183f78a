"""What a user of the running stack does: trigger by REST in a role, wait, look into MLflow and into the store."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from talaria.devstack.airflow_client import AirflowApi

from tests.stack.engine import Engine

SMALL = {
    "download.rows": 400,
    "download.tool_rows": 20,
    "base.vocab_size": 512,
    "base.shape.hidden_size": 32,
    "base.shape.num_hidden_layers": 1,
    "train.num_processes": 1,
    "train.keep_epochs": False,
    "evaluate.prompts": 4,
    "evaluate.max_new_tokens": 4,
}


@dataclass(frozen=True)
class Deployment:
    engine: Engine
    values: dict[str, str]
    _sessions: dict[str, AirflowApi] = field(default_factory=dict)

    @property
    def secrets(self) -> dict[str, str]:
        """Every value of .env that must not show anywhere."""
        return {name: value for name, value in self.values.items() if name.endswith(("_PASSWORD", "_KEY", "_SECRET", "_TOKEN"))}

    def airflow(self, role: str) -> AirflowApi:
        """Logged in once: checking a password is the slowest thing that the api-server does."""
        if role not in self._sessions:
            url, password = self.engine.url("api-server", 8080), self.values[f"{role.upper()}_PASSWORD"]
            self._sessions[role] = AirflowApi(url, role, password)
        return self._sessions[role]

    def mlflow(self, path: str, **parameters: str) -> Any:
        """GET of MLflow's REST API as its admin, by the name that the stack calls it."""
        answer = httpx.get(
            f"{self.engine.url('mlflow', 5000)}/api/2.0/mlflow/{path}",
            params=parameters,
            headers={"Host": "mlflow:5000"},
            auth=("admin", self.values["MLFLOW_PASSWORD"]),
            timeout=30,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()

    def trigger(self, role: str, dag: str, **conf: Any) -> str:
        """The run's id; raises httpx.HTTPStatusError where the role may not."""
        (run_id,) = self.trigger_all(role, dag, [conf])
        return run_id

    def trigger_all(self, role: str, dag: str, confs: Iterable[Mapping[str, Any]]) -> list[str]:
        """One run after another; their ids."""
        api = self.airflow(role)
        bodies = ({"logical_date": None, "conf": conf} for conf in confs)
        return [str(api.call("POST", f"/api/v2/dags/{dag}/dagRuns", json=body)["dag_run_id"]) for body in bodies]

    def train(self, name: str, **overrides: Any) -> str:
        return self.trigger("operator", "sft", config="tiny", set=SMALL | {"name": name, **overrides})

    def finished(self, run_id: str, dag: str = "sft", progress: Callable[[], object] = str) -> dict[str, str]:
        """Wait for the run to end in success and return its tasks' states."""
        state = self.ended(run_id, dag, progress)
        assert state == "success", self.report(run_id, dag)
        return {task["task_id"]: task["state"] for task in self.airflow("viewer").tasks(dag, run_id)}

    def ended(self, run_id: str, dag: str = "sft", progress: Callable[[], object] = str) -> str:
        """Wait for the run to end, up to 400 s, or as long as `progress` changes in such a time, and return its state."""
        run: dict[str, Any] = {}

        def ended() -> bool:
            run.update(self.airflow("viewer").run(dag, run_id))
            return run["state"] in ("success", "failed")

        self.until(ended, 400, lambda: self.report(run_id, dag), progress=progress)
        return str(run["state"])

    def report(self, run_id: str, dag: str = "sft") -> str:
        """States of the run's tasks and the end of the newest task logs, for a test's failure message."""
        try:
            tasks = [(task["task_id"], task["state"], task["try_number"]) for task in self.airflow("viewer").tasks(dag, run_id)]
        except httpx.HTTPError as error:
            tasks = [("Airflow does not answer", str(error), 0)]
        logs = sorted(self.engine.volume("airflow-logs").rglob("attempt=*.log"), key=lambda path: path.stat().st_mtime)[-2:]
        tails = [f"{path}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]) for path in logs]
        return "\n".join([str(tasks), *tails])

    def until(
        self,
        true: Callable[[], bool],
        timeout: float,
        describe: Callable[[], str] = str,
        every: float = 0.2,
        progress: Callable[[], object] = str,
    ) -> None:
        """Ask until it is true. A service that does not answer just now is asked again.

        It gives up after a timeout in which what `progress` returns stays as it was: how busy the machine is decides nothing.
        """
        seen, now = None, progress()
        while now != seen:
            seen, deadline = now, time.monotonic() + timeout
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
                    if true():
                        return
                time.sleep(every)
            now = progress()
        raise AssertionError(f"not in {timeout} s: {describe()}")

    def versions(self, model: str) -> list[dict[str, Any]]:
        return list(self.mlflow("model-versions/search", filter=f"name='{model}'").get("model_versions", []))

    def training(self, seed: int) -> Path:
        """The folder of the training with this seed: made, or being made."""
        for config in (self.engine.volume("talaria") / "store").rglob("config.json"):
            if "checkpoints" not in config.parts and json.loads(config.read_text()).get("train", {}).get("seed") == seed:
                return config.parent
        raise FileNotFoundError(f"no training with seed {seed}")

    def rows(self, seed: int, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """What the training with this seed has written so far."""
        try:
            lines = (self.training(seed) / file).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]
