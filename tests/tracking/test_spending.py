"""What trainings cost, summed over runs and models, and a budget that stops runs that nobody asked for."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from talaria.common.errors import ConfigError
from talaria.config.load import parse
from talaria.tracking.mlflow_client import connect
from talaria.tracking.spending import Spending, spending

DAY = 86_400_000


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow with four trainings of two models, one of them older than a month, and a run that is no training."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('spending')}/mlflow.db"
    client, now = connect(uri), int(time.time() * 1000)
    for name, model, price, hours, age in (
        ("chat", "None", "2.5", 4.0, 1),
        ("chat", "None", "2.0", 1.0, 2),
        ("chat", "None", "2.0", 100.0, 40),
        ("chat-lora", "chat", "None", 3.0, 3),
        ("speech", "None", "1.0", 7.0, 3),
    ):
        run = client.create_run("0", start_time=now - age * DAY).info.run_id
        for key, value in (("name", name), ("registry.model", model), ("registry.gpu_hour_price", price)):
            client.log_param(run, key, value)
        client.log_metric(run, "cost/gpu_hours", hours)
    client.create_run("0")
    return uri


def test_cost_is_summed_by_registered_model_at_each_runs_own_price(uri: str) -> None:
    assert spending(uri, days=30) == {"chat": Spending(3, 8.0, 12.0, 3.0), "speech": Spending(1, 7.0, 7.0, 0.0)}


@pytest.mark.parametrize(("budget", "held_back"), [(12.0, True), (12.5, False), (0.0, True)])
def test_a_budget_stops_scheduled_runs(uri: str, budget: float, held_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from talaria_airflow.dag import tasks as dag_tasks

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(dag_tasks, "store", lambda: SimpleNamespace(root=Path("/nowhere")))
    tree: dict[str, Any] = {"name": "chat", "registry": {"gpu_hour_price": 2.0}}
    tree["schedule"] = {"skip_unchanged": False, "monthly_budget": budget}
    reason = dag_tasks._reason_to_skip(parse(tree, "test"))
    assert (reason is not None) is held_back
    if reason:
        assert "of chat in the last 30 days cost 12.00, and schedule.monthly_budget is" in reason


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.monthly_budget needs registry\.gpu_hour_price"):
        parse({"name": "chat", "schedule": {"monthly_budget": 3}}, "test")
