"""When `sft` runs by itself, as the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from talaria.common.errors import ConfigError
from talaria.config.load import parse
from talaria_airflow import scheduling


def configuration(**schedule: Any) -> Any:
    return parse({"name": "scheduled", "download": {"repo": "owner/chats"}, "schedule": schedule}, "test")


def test_without_a_schedule_nothing_starts_by_itself() -> None:
    assert scheduling.schedule_of(configuration()) is None
    assert scheduling.deadline_of(configuration()) is None


def test_a_cron_expression_is_in_utc() -> None:
    schedule = scheduling.schedule_of(configuration(cron="0 3 * * *"))
    assert (schedule.expression, str(schedule.timezone)) == ("0 3 * * *", "UTC")


def test_a_watcher_looks_at_the_data_sets_branch() -> None:
    (asset,) = scheduling.schedule_of(configuration(on_new_revision=True, poll_seconds=7))
    (watcher,) = asset.watchers
    assert watcher.trigger.serialize()[1] == {"repo": "owner/chats", "revision": "main", "poll_seconds": 7.0}


def test_both_together() -> None:
    schedule = scheduling.schedule_of(configuration(cron="0 3 * * *", on_new_revision=True))
    assert schedule.timetable.expression == "0 3 * * *"
    assert [asset.name for (asset,) in [schedule.asset_condition.objects]] == ["hub:owner/chats@main"]


def test_watching_needs_the_hub() -> None:
    with pytest.raises(ConfigError, match=r"schedule.on_new_revision needs download.source: hub"):
        parse({"name": "x", "download": {"source": "sample"}, "schedule": {"on_new_revision": True}}, "test")


def write(folder: Path, name: str, tree: dict[str, Any]) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


def test_the_dag_is_off_until_wanted_only_where_it_has_a_schedule(
    airflow_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    from tests.support.airflow_env import REPOSITORY

    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    write(tmp_path, "plain", {})
    write(tmp_path, "nightly", {"schedule": {"cron": "0 3 * * *", "deadline_hours": 8}})
    for name, paused in (("plain", False), ("nightly", True)):
        monkeypatch.setenv("TALARIA_CONFIG", name)
        bag = DagBag(REPOSITORY / "dags")
        assert bag.import_errors == {}
        dag = bag.dags["sft"]
        assert dag.is_paused_upon_creation is paused
        assert dag.params["config"] == name
        assert bool(dag.deadline) is paused


def test_a_scheduled_configuration_that_does_not_validate_is_an_import_error(
    airflow_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    from tests.support.airflow_env import REPOSITORY

    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    write(tmp_path, "broken", {"train": {"lr": -1}})
    (error,) = DagBag(REPOSITORY / "dags").import_errors.values()
    assert f"{tmp_path}/broken.yaml: train.lr: should be greater than 0, got -1." in error
