"""The few calls to Airflow's REST API that `up` and `demo` need."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import httpx


def is_up(url: str) -> bool:
    """Return whether the address answers with success."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


class AirflowApi:
    """An authenticated client of Airflow's REST API; its calls raise httpx.HTTPError when they fail."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False)  # a busy machine's first answers take half a minute
        token = self.call("POST", "/auth/token", json={"username": user, "password": password})["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Make the pool if it is absent; its size stays as it is if somebody has changed it."""
        if self._http.get(f"/api/v2/pools/{name}").status_code == httpx.codes.NOT_FOUND:
            self.call("POST", "/api/v2/pools", json={"name": name, "slots": slots, "description": description})

    def import_errors(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/api/v2/importErrors")["import_errors"])

    def has_dag(self, dag_id: str) -> bool:
        return self._http.get(f"/api/v2/dags/{dag_id}").is_success

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Do what `airflow dags trigger` does, without the four seconds in which that command imports Airflow."""
        self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", json={"dag_run_id": run_id, "conf": conf, "logical_date": None})

    def dag_tasks(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the tasks of a DAG with their downstream task ids."""
        return list(self.call("GET", f"/api/v2/dags/{dag_id}/tasks")["tasks"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"))

    def unfinished_runs(self, dag_id: str) -> list[str]:
        """Return the ids of running and queued runs, oldest first."""
        params = {"state": ["running", "queued"], "order_by": "id"}
        return [run["dag_run_id"] for run in self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=params)["dag_runs"]]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the run's task instances, one entry per mapped instance."""
        return list(
            self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 1000})["task_instances"]
        )

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return the task's return value, or None."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        answer = self._http.get(path, params={"deserialize": True})
        return answer.json()["value"] if answer.is_success else None

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int, map_index: int = -1) -> list[dict[str, Any]]:
        """Return the structured lines of a task's log."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        params = {"full_content": True, "map_index": map_index}
        content = self.call("GET", path, params=params, headers={"Accept": "application/json"})["content"]
        return [line for line in content if isinstance(line, dict)]

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send a request and return its JSON; raise httpx.HTTPStatusError when it fails."""
        answer = self._http.request(method, path, **kwargs)
        answer.raise_for_status()
        return answer.json()
