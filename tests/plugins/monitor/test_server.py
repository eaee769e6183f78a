"""The page's server inside a real Airflow: who may ask, what comes back, and how much of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from talaria_airflow.monitor.mlflow_facts import MlflowFacts

from tests.plugins.monitor.server import TRAINED, Airflow
from tests.support import synthetic_runs as synthetic

KEY = synthetic.key(1)
DATA = ["", "api/runs", f"api/runs/{KEY}", f"api/runs/{KEY}/curves", f"api/runs/{KEY}/registry"]


@pytest.mark.parametrize("path", DATA)
def test_only_those_who_may_read_the_dags_runs_get_an_answer(airflow: Airflow, store: Path, path: str) -> None:
    synthetic.running(store, 1)
    assert airflow.client().get(path).status_code == 401
    assert airflow.client("stranger").get(path).status_code == 403
    assert airflow.client("viewer").get(path).status_code == 200


def test_the_answers_of_an_evaluation_are_a_page_under_its_own_policy(airflow: Airflow, store: Path) -> None:
    line = {"row": 3, "prompt": "<p>", "reference": "x", "base": "y", "tuned": "x", "base_match": False, "tuned_match": True}
    folder = store / "evaluate" / ("a" * 32)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "samples.jsonl").write_text(json.dumps(line))
    assert airflow.client("stranger").get(f"answers/{'a' * 64}").status_code == 403
    answer = airflow.client("viewer").get(f"answers/{'a' * 64}")
    assert answer.status_code == 200
    assert "&lt;p&gt;" in answer.text
    assert "sha256-" in answer.headers["Content-Security-Policy"]
    assert airflow.client("viewer").get(f"answers/{'b' * 64}").status_code == 404
    assert airflow.client("viewer").get("answers/..%2fx").status_code in (400, 404)


def test_a_forged_token_is_refused(airflow: Airflow, store: Path) -> None:
    client = airflow.client("viewer")
    client.headers["Authorization"] = client.headers["Authorization"][:-4] + "AAAA"
    assert client.get("api/runs").status_code in (401, 403)


@pytest.mark.parametrize(
    "path",
    [
        f"api/runs/{synthetic.key(9)}",
        f"api/runs/{synthetic.key(9)}/curves",
        "api/runs/..",
        "api/runs/..%2f..%2ftrain",
        f"api/runs/..%2ftrain%2f{KEY}",
        f"api/runs/{KEY}%00",
        "static/../app.py",
        "static/..%2fapp.py",
        "static/%2e%2e/%2e%2e/monitor/app.py",
    ],
)
def test_what_is_no_run_and_no_asset_is_not_found(airflow: Airflow, store: Path, path: str) -> None:
    synthetic.running(store, 1)
    outside = store / "train"
    outside.mkdir()
    assert airflow.client("admin").build_request("GET", path).url.raw_path  # httpx sends the path as it is written
    assert airflow.client("admin").get(path).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "name=loss'%20OR%201",
        "name=" + "&name=".join(["loss"] * 9),
        "focus=nothing",
        "axis=sideways",
        "since=%00",
        "since=²@1.0",
        "start=nan&stop=1",
        "start=1",
        "start=2&stop=1",
        "start=one&stop=2",
        "smooth=-1",
        "smooth=1e400",
        "smooth=99999999999999999999",
    ],
)
def test_a_query_that_cannot_be_meant_is_refused_in_a_sentence(airflow: Airflow, store: Path, query: str) -> None:
    synthetic.running(store, 1)
    answer = airflow.client("admin").get(f"api/runs/{KEY}/curves?{query}")
    assert answer.status_code == 400
    assert answer.json()["detail"].endswith(".")


def test_half_a_dag_run_is_refused(airflow: Airflow, store: Path) -> None:
    assert airflow.client("admin").get("api/runs?dag_id=sft").status_code == 400


def test_a_run_that_cannot_be_read_does_not_hide_the_others(airflow: Airflow, store: Path) -> None:
    synthetic.running(store, 1)
    broken = synthetic.running(store, 2)
    (broken / "metrics.jsonl").unlink()
    (broken / "metrics.jsonl").mkdir()
    cards = {card["key"]: card for card in airflow.client("admin").get("api/runs").json()["runs"]}
    assert cards[synthetic.key(1)]["state"] != "unreadable"
    assert cards[synthetic.key(2)]["state"] == "unreadable"
    assert set(cards[synthetic.key(1)]) == set(cards[synthetic.key(2)])
    answer = airflow.client("admin").get(f"api/runs/{synthetic.key(2)}/curves")
    assert (answer.status_code, answer.json()["detail"].endswith("cannot be read: Is a directory.")) == (503, True)


def test_the_page_allows_no_foreign_and_no_inline_code(airflow: Airflow) -> None:
    answer = airflow.client("viewer").get("")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert "http" not in answer.text
    assert "<script>" not in answer.text
    assert "style=" not in answer.text


def test_the_list_has_the_newest_first(airflow: Airflow, store: Path) -> None:
    synthetic.finished(store, 2, start=synthetic.START)
    synthetic.running(store, 1, start=time.time() - 260)
    runs = airflow.client("viewer").get("api/runs").json()["runs"]
    assert [(run["key"], run["state"]) for run in runs] == [(KEY, "running"), (synthetic.key(2), "done")]


def test_a_long_list_is_cut_but_a_dag_run_finds_its_training_however_old(airflow: Airflow, store: Path) -> None:
    synthetic.finished(store, TRAINED, steps=3, start=synthetic.START - 1e6)
    for number in range(100, 162):
        synthetic.finished(store, number, steps=3)
    client = airflow.client("viewer")
    answer = client.get("api/runs")
    assert len(answer.json()["runs"]) == 60
    assert answer.json()["more"] == 3
    assert len(answer.content) < 50_000
    of_run = client.get("api/runs", params={"dag_id": "sft", "run_id": airflow.dag_run}).json()["runs"]
    assert [run["key"] for run in of_run] == [synthetic.key(TRAINED)]


def test_a_dag_run_shows_what_it_trained(airflow: Airflow, store: Path) -> None:
    synthetic.finished(store, 1)
    synthetic.finished(store, TRAINED)
    live = synthetic.running(store, 3)
    status = json.loads((live / "status.json").read_text())
    (live / "status.json").write_text(json.dumps({**status, "airflow": {"dag_id": "sft", "run_id": "still running"}}))
    client = airflow.client("viewer")

    def keys(run_id: str) -> list[str]:
        return [run["key"] for run in client.get("api/runs", params={"dag_id": "sft", "run_id": run_id}).json()["runs"]]

    assert keys(airflow.dag_run) == [synthetic.key(TRAINED)]
    assert keys("still running") == [synthetic.key(3)]
    assert keys("another") == []


def test_missing_torn_and_growing_files_show_what_is_there(
    airflow: Airflow, store: Path, grow: Callable[[Path, int, int], None]
) -> None:
    folder = store / ".work" / f"train-{KEY}"
    folder.mkdir(parents=True)
    client = airflow.client("viewer")
    assert client.get(f"api/runs/{KEY}").json()["state"] == "starting"
    assert client.get(f"api/runs/{KEY}/curves").json()["curves"]["loss"] == {"step": [], "y": []}
    grow(folder, 1, 10)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss"')
    answer = client.get(f"api/runs/{KEY}/curves").json()
    assert answer["curves"]["loss"]["step"] == list(range(1, 11))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(': NaN, "lr": 1e-5}\n')
    grow(folder, 12, 14)
    later = client.get(f"api/runs/{KEY}/curves", params={"since": answer["cursor"]}).json()
    assert later["curves"]["loss"]["step"] == [12, 13, 14]
    assert later["curves"]["lr"]["step"] == [11, 12, 13, 14]


def test_a_hundred_thousand_steps_come_in_less_than_fifty_kilobytes(airflow: Airflow, store: Path) -> None:
    folder = synthetic.running(store, 1, steps=30_000, total=100_000, spikes={21_234: 9.5})
    client = airflow.client("viewer")
    cursor = client.get(f"api/runs/{KEY}/curves").json()["cursor"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(synthetic.lines(synthetic.rows(30_001, 100_000, total=100_000, spikes={77_777: 8.5})))
    first = client.get(f"api/runs/{KEY}/curves", params={"smooth": 200, "axis": "tokens"})
    update = client.get(f"api/runs/{KEY}/curves", params={"smooth": 200, "since": cursor})
    small = client.get(f"api/runs/{KEY}/curves", params={"smooth": 200, "since": update.json()["cursor"]})
    history = client.get(f"api/runs/{KEY}")
    assert len(history.json()["events"]) == 100
    assert len(update.content) + len(history.content) < 50_000
    assert len(first.content) < 50_000
    assert len(small.content) < 3_000
    assert {9.5, 8.5} <= set(first.json()["curves"]["loss"]["y"])
    assert 8.5 in update.json()["curves"]["loss"]["y"]
    assert update.json()["curves"]["loss"]["step"][0] == 30_001


def test_the_registry_tells_versions_and_the_gates_decision(airflow: Airflow, store: Path, registered: str) -> None:
    synthetic.finished(store, 1, mlflow_run_id=registered)
    facts = airflow.client("viewer").get(f"api/runs/{KEY}/registry").json()
    assert facts["run_url"].partition("?")[0].endswith(f"/runs/{registered}")
    assert [(version["version"], version["aliases"]) for version in facts["versions"]] == [(2, []), (1, ["champion"])]
    assert facts["decision"] == [
        ["Gate, version 2", "refused. Held-out loss after 200 steps."],
        ["Gate, version 1", "promoted. Held-out loss after 100 steps."],
    ]
    assert facts["answers"] == f"answers/{synthetic.key(9)}"
    assert facts["problem"] is None


def test_an_mlflow_that_is_away_costs_a_remark_and_is_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    registry = MlflowFacts()
    facts = registry.facts("abc")
    assert facts["run_url"] is None
    assert "does not answer" in facts["problem"]
    assert registry.facts("abc") is facts
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MlflowFacts().facts("abc")["problem"] is None


def test_the_plugin_is_loaded_once_and_without_the_server(airflow: Airflow) -> None:
    plugins = airflow.client("admin").get(f"{airflow.url}/api/v2/plugins").json()["plugins"]
    assert [plugin["name"] for plugin in plugins if "talaria" in plugin["name"]] == ["talaria"]
    errors = airflow.client("admin").get(f"{airflow.url}/api/v2/plugins/importErrors").json()
    assert errors["total_entries"] == 0
