"""What a person sees before a promotion, and what each answer leads to."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import talaria.registry.promotion.promote as promotion
from airflow.sdk.exceptions import TaskAwaitingInput
from talaria.common.errors import UserError
from talaria.store.store import Store
from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.listeners.run_notes import NOTE
from talaria_airflow.operators import approval
from talaria_airflow.operators.approval import AskOperator, question
from talaria_airflow.operators.stage import given_output
from talaria_airflow.operators.xcom import storable

COMPARED: dict[str, Any] = {
    "model": "small",
    "version": 7,
    "promoted": True,
    "reason": "Its held-out loss 1.2346 is below that of the base model, 2.0000.",
    "champion": 3,
    "numbers": {
        "held-out loss": {"base": 2.0, "champion": 1.5, "candidate": 1.23456789},
        "exact match": {"base": 0.0, "champion": 0.25, "candidate": 0.5},
        "task sums": {"base": 0.0, "champion": None, "candidate": 1.0},
    },
    "examples": [{"prompt": "2 + 2 =\n?", "reference": "4", "base": "| <b>five</b> |", "champion": "four", "tuned": "4"}],
    "url": "http://mlflow.example/7",
    "answers_url": "http://airflow.example/talaria/answers/0",
}


def test_the_question_shows_all_three_side_by_side_with_answers() -> None:
    lines = question(COMPARED).splitlines()
    assert lines[:4] == [
        "|  | base | champion (version 3) | candidate (version 7) |",
        "| --- | --- | --- | --- |",
        "| held-out loss | 2.0000 | 1.5000 | 1.2346 |",
        "| exact match | 0.0000 | 0.2500 | 0.5000 |",
    ]
    assert lines[4] == "| task sums | 0.0000 | – | 1.0000 |"
    assert f"The gate would promote it: {COMPARED['reason']}" in lines
    assert "| prompt | 2 \\+ 2 = ? |" in lines
    assert lines[lines.index("| prompt | 2 \\+ 2 = ? |") + 2 :][:4] == [
        *("| reference | 4 |", "| base | \\| \\<b\\>five\\</b\\> \\| |", "| champion | four |", "| candidate | 4 |")
    ]
    assert lines[-1] == "[The version in MLflow](http://mlflow.example/7)"
    assert lines[-3] == "[Answers of base and candidate side by side](http://airflow.example/talaria/answers/0)"
    assert "champion" not in question(COMPARED | {"champion": None}).splitlines()[0]


def test_what_the_data_says_is_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **detail: asked.update(detail))
    monkeypatch.setattr(approval.Alert, "notify", lambda self, context: None)
    hostile = COMPARED | {"examples": [COMPARED["examples"][0] | {"prompt": "{{ conn.hf.password }}"}]}
    task = AskOperator(task_id="approve", compared=hostile)
    with pytest.raises(TaskAwaitingInput):
        task.execute({"task_instance": SimpleNamespace(id="1"), "ti": SimpleNamespace(log_url="")})  # type: ignore[arg-type]
    assert asked["subject"] == "Promote small 7?"
    assert "conn\\.hf\\.password" in asked["body"]
    assert (asked["options"], asked["defaults"]) == (["Approve", "Reject"], ["Reject"])


@pytest.mark.parametrize(
    ("approval_wanted", "would_promote", "asked"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_nobody_is_asked_where_there_is_nothing_to_decide(approval_wanted: bool, would_promote: bool, asked: bool) -> None:
    assert (
        dag_tasks.has_to_be_asked({"name": "small", "promote": {"approval": approval_wanted}}, {"promoted": would_promote})
        is asked
    )


@pytest.mark.parametrize(
    ("answer", "called", "with_"),
    [
        (None, "promote", {"approved_by": None}),
        ({"chosen_options": ["Approve"], "responded_by_user": {"id": "1", "name": "ann"}}, "promote", {"approved_by": "ann"}),
        ({"chosen_options": ["Reject"], "responded_by_user": {"id": "1", "name": "ann"}}, "reject", {"by": "ann"}),
        ({"chosen_options": ["Reject"], "responded_by_user": None}, None, {}),
    ],
    ids=["not asked", "approved", "rejected", "nobody answered"],
)
def test_an_answer_leads_to_its_action(
    answer: Any, called: str | None, with_: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TALARIA_STORE", str(tmp_path))
    calls: dict[str, dict[str, Any]] = {}
    for name in ("promote", "reject"):

        def act(model: str, version: int, name: str = name, **more: Any) -> dict[str, Any]:
            calls[name] = more
            return {"reason": f"{name} {model} {version}", "loss": math.nan}

        monkeypatch.setattr(promotion, name, act)
    pushed: dict[str, str] = {}
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))}
    decided = dag_tasks.promote({"name": "small"}, {"model": "small", "candidate": 7}, answer, context)
    assert list(calls) == ([called] if called else [])
    assert {key: calls[called][key] for key in with_} == with_ if called else "Nobody answered within 7 days" in decided["reason"]
    assert pushed == {NOTE: decided["reason"]}


def test_a_result_holds_no_number_that_airflow_cannot_keep() -> None:
    assert storable({"loss": math.nan, "losses": [math.inf, 1.0], "path": Path("/x")}) == {
        "loss": None,
        "losses": [None, 1.0],
        "path": "/x",
    }


def test_an_input_that_is_gone_names_the_cure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"The task train has no result: it was marked as success, or skipped\. Clear it"):
        given_output(store, "train", None)
    gone = {"path": str(tmp_path / "train" / "k"), "key": "k" * 64, "facts": {}, "seconds": 1.0}
    with pytest.raises(UserError, match=r"the output of stage train is gone, pruned perhaps. Clear that task to make it again"):
        given_output(store, "train", gone)
    with pytest.raises(UserError, match=r"The task configure has no result"):
        dag_tasks.parse(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"The task compare has no result"):
        dag_tasks.has_to_be_asked({"name": "small", "promote": {"approval": True}}, None)  # type: ignore[arg-type]
    (tmp_path / "train" / "k").mkdir(parents=True)
    assert given_output(store, "train", gone).key == gone["key"]
