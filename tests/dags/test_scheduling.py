"""When `sft` runs by itself, as the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from talaria.common.errors import ConfigError
from talaria.config.load import parse
from talaria_airflow.dag import scheduling

from tests.support.airflow_env import REPOSITORY


def configuration(**schedule: Any) -> Any:
    return parse({"name": "scheduled", "download": {"repo": "owner/chats"}, "schedule": schedule}, "test")


def test_without_a_schedule_nothing_starts_by_itself() -> None:
    assert scheduling.schedule_of(configuration()) is None
    assert scheduling.deadline_of(configuration()) is None


def test_a_cron_expression_is_in_utc_unless_a_time_zone_is_named() -> None:
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


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    return tmp_path


def parsed() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(REPOSITORY / "dags")


def test_each_configuration_with_a_schedule_has_a_dag_that_is_off_until_wanted(airflow_db: None, configs: Path) -> None:
    write(configs, "plain", {})
    nightly = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "deadline_hours": 8, "owner": "speech", "pool": "a100"}
    write(configs, "nightly", {"schedule": nightly, "alerts": {"webhook": "speech_channel"}})
    write(configs, "watching", {"schedule": {"on_new_revision": True}})
    bag = parsed()
    assert bag.import_errors == {}
    assert set(bag.dags) == {"sft", "sft_nightly", "sft_watching", "sweep", "rollback", "watch-champion"}
    paused = {name: dag.is_paused_upon_creation for name, dag in bag.dags.items()}
    assert {name for name, off in paused.items() if off} == {"sft_nightly", "sft_watching", "watch-champion"}
    dag = bag.dags["sft_nightly"]
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 3 * * *", "Europe/Berlin")
    assert {task.owner for task in dag.tasks} == {"speech"}
    assert dag.get_task("model.train").pool == "a100"
    assert dag.get_task("model.train").channels["webhook"] == "speech_channel"
    assert dag.deadline
    assert "config" not in dag.params
    assert bag.dags["sft"].schedule is None


def test_the_form_starts_with_the_configuration_that_the_deployment_names(
    airflow_db: None, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(configs, "plain", {})
    write(configs, "tiny", {})
    assert parsed().dags["sft"].params["config"] == "tiny"
    monkeypatch.setenv("TALARIA_CONFIG", "plain")
    assert parsed().dags["sft"].params["config"] == "plain"


def test_a_dag_of_ones_own_has_the_schedule_owner_and_pool_that_it_names(airflow_db: None, configs: Path) -> None:
    from talaria_airflow import sft_dag

    write(configs, "plain", {})
    dag = sft_dag(config="plain", dag_id="weekly", schedule="@weekly", owner="me", pool="mine", queue="mine")
    assert (dag.dag_id, dag.schedule, dag.is_paused_upon_creation) == ("weekly", "@weekly", True)
    train = dag.get_task("model.train")
    assert (train.owner, train.pool, train.queue) == ("me", "mine", "mine")
    with pytest.raises(ConfigError, match="unknown configuration"):
        sft_dag(config="none", dag_id="other")


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ({"cron": "0 25 * * *"}, "broken: schedule.cron '0 25 * * *' is no cron expression; write for example '0 3 * * 1'."),
        (
            {"cron": "0 3 * * *", "timezone": "Berlin"},
            "schedule.timezone 'Berlin' is no time zone; write for",
        ),
        ({"poll_seconds": 0}, "schedule.poll_seconds: should be greater than or equal to 1, got 0."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_broken_configuration_is_an_import_error_and_stops_no_other_schedule(
    airflow_db: None, configs: Path, schedule: dict[str, Any], sentence: str
) -> None:
    write(configs, "broken", {"schedule": schedule})
    write(configs, "nightly", {"schedule": {"cron": "0 3 * * *"}})
    bag = parsed()
    ((file, error),) = bag.import_errors.items()
    assert file.endswith("broken_configurations.py")
    assert sentence in error
    assert set(bag.dags) == {"sft", "sft_nightly", "sweep", "rollback", "watch-champion"}
