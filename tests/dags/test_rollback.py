"""The DAG `rollback` in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow with the model `chat`, of which each of three versions was better than the one before: 3 is the champion."""
    from talaria.config.evaluation_settings import Promote
    from talaria.registry.promotion.promote import promote
    from talaria.tracking.mlflow_client import connect

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("TALARIA_STORE", str(tmp_path / "store"))
    client = connect(uri)
    client.create_registered_model("chat")
    run = client.create_run(client.create_experiment("chat")).info.run_id
    for loss in (4.0, 3.0, 2.0):
        tags = {"candidate": "true", "eval_loss": loss, "eval_base_loss": 5.0, "heldout_digest": "same", "train_key": loss}
        made = client.create_model_version(
            "chat", f"runs:/{run}/model", run, {f"talaria.{name}": str(value) for name, value in tags.items()}
        )
        promote("chat", int(made.version), settings=Promote(rule="plain"), uri=uri)
    return client


def champion(client: Any) -> int:
    return int(client.get_model_version_by_alias("chat", "champion").version)


def test_the_former_champion_comes_back_with_who_and_why(dags: dict[str, Any], client: Any) -> None:
    assert champion(client) == 3
    run = dags["rollback"].test(run_conf={"model": "chat", "reason": "answers in Latin"})
    assert run.state == "success"
    assert champion(client) == 2
    from talaria.registry.versions import tags_of

    tags = tags_of(client.get_model_version("chat", "3"))
    assert tags["talaria.rolled_back_reason"] == "answers in Latin"
    assert tags["talaria.rolled_back_by"] == run.triggering_user_name == "dag_test"


def test_an_unknown_model_fails_without_another_attempt(
    dags: dict[str, Any], client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dags["rollback"].test(run_conf={"model": "chart", "reason": "a typo"})
    task = run.get_task_instance("move_champion_back")
    assert (run.state, task.state, task.try_number) == ("failed", "failed", 1)
    assert "chart" in capsys.readouterr().out
    assert champion(client) == 3


def test_a_reason_is_asked_for(dags: dict[str, Any], client: Any) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError, match="reason"):
        dags["rollback"].test(run_conf={"model": "chat"})
    assert champion(client) == 3
