"""The DAG `sft` in this process: the whole way at a tiny size, run again, and refused in every way that a user can cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import ConfigError
from talaria.config import load as settings
from talaria.config.schema import Convert

from tests.support.airflow_env import REPOSITORY

TINY = REPOSITORY / "configs" / "tiny.yaml"
SMALL = {
    "name": "small",
    "download.rows": 300,
    "base.vocab_size": 512,
    "base.shape.hidden_size": 32,
    "base.shape.num_hidden_layers": 1,
    "train.num_processes": 1,
    "train.max_steps": 4,
    "train.keep_epochs": False,
    "evaluate.prompts": 4,
    "evaluate.max_new_tokens": 4,
}
STAGES = ("data.download", "data.convert", "data.base", "data.tokenize", "data.report", "model.train", "model.evaluate")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(autouse=True)
def installation(shared: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store and an MLflow for all tests here, so that later ones reuse what the first has made."""
    monkeypatch.setenv("TALARIA_STORE", str(shared / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}/mlflow.db")
    return f"sqlite:///{shared}/mlflow.db"


def run(dags: dict[str, Any], **conf: Any) -> Any:
    return dags["sft"].test(run_conf={"config": "tiny", **conf})


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def returned(run: Any, task: str) -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        entry = session.scalars(XComModel.get_many(run_id=run.run_id, task_ids=task, key="return_value")).one()
        return json.loads(entry.value) if isinstance(entry.value, str) else entry.value


def refusal(run: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What the log says of a run in which nothing but `configure` was tried, once."""
    assert run.state == "failed"
    assert {name: state for name, state in states(run).items() if state != "upstream_failed"} == {"configure": "failed"}
    assert run.get_task_instance("configure").try_number == 1
    return capsys.readouterr().out


@pytest.mark.timeout(600)
def test_the_whole_way_twice(dags: dict[str, Any], installation: str) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from mlflow import MlflowClient
    from sqlalchemy import select

    first = run(dags, set=SMALL)
    assert first.state == "success"
    skipped = {name for name, state in states(first).items() if state == "skipped"}
    assert skipped == {"data.tokenize_part", "registry.approve"}
    promoted = returned(first, "registry.promote")
    assert promoted["promoted"]
    client = MlflowClient(installation)
    assert client.get_model_version_by_alias("small", "champion").version == promoted["version"]

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == first.run_id)).all()
        told = {event.asset.name: event.extra for event in events}
    assert told["talaria-tokens"]["key"] == returned(first, "data.tokenize")["key"]
    assert told["talaria-messages"]["path"] == returned(first, "data.convert")["path"]
    assert told["talaria-model"]["candidate"] == promoted["version"]

    # The same again, tokenised in parts and on other ranks: nothing that decides the result has changed.
    versions = len(client.search_model_versions("name='small'"))
    second = run(dags, set=SMALL | {"tokenize.shards": 3, "train.prefetch": 1})
    assert second.state == "success"
    assert all(returned(second, task)["reused"] for task in (*STAGES, "registry.register"))
    assert len(client.search_model_versions("name='small'")) == versions
    assert returned(second, "registry.promote")["champion"] == promoted["version"]


@pytest.mark.parametrize(
    "overrides",
    [{"train.lr": -1}, {"train.learning_rate": 1e-4}, {"base.source": "local"}, {"train": 3}, {"train.lr.peak": 1}],
    ids=lambda overrides: next(iter(overrides)),
)
def test_a_bad_override_is_refused_as_on_the_command_line(
    dags: dict[str, Any], overrides: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as command_line:
        settings.load(TINY, overrides)
    assert str(command_line.value) in refusal(run(dags, set=overrides), capsys)


def test_a_misspelt_parameter_is_refused(dags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown parameter sets; a run takes config, set, force." in refusal(run(dags, sets={}), capsys)


@pytest.mark.parametrize("name", ["no-such", "../pyproject", "/etc/passwd", "tiny.yaml"])
def test_only_names_of_the_configuration_folder_are_taken(dags: dict[str, Any], name: str) -> None:
    from airflow.sdk.exceptions import ParamValidationError
    from talaria_airflow.scheduling import config_file

    with pytest.raises(ParamValidationError, match="is not one of"):
        run(dags, config=name)
    with pytest.raises(ConfigError, match="unknown configuration"):
        config_file(name)


def test_code_of_ones_own_is_refused_before_anything_runs(dags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    log = refusal(run(dags, set={"convert.function": "os:remove"}), capsys)
    assert "set TALARIA_ALLOW_CUSTOM_CODE=1 where it runs to allow it." in log


def test_a_row_that_cannot_be_converted_fails_with_the_command_lines_sentence(
    dags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from talaria.common.errors import DataError
    from talaria.data.convert import convert

    rows = [{"conversations": [{"from": role, "value": "Hello."}]} for role in ("human", "narrator")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    local = {"download.source": "local", "download.path": str(tmp_path / "rows.json")}
    failed = run(dags, set=SMALL | local)
    assert failed.state == "failed"
    convert_task = failed.get_task_instance("data.convert")
    assert (convert_task.state, convert_task.try_number) == ("failed", 1)
    with pytest.raises(DataError) as command_line:
        convert(Path(returned(failed, "data.download")["path"]), tmp_path / "out.parquet", Convert())
    assert str(command_line.value) in capsys.readouterr().out
    assert not (tmp_path / "out.parquet").exists()
