"""What people do in Airflow's own pages, in headless Chromium: fill in the trigger form, and answer a question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from playwright.sync_api import expect
from talaria.registry.versions import tags_of

from tests.plugins.operators.test_approval import COMPARED
from tests.support.airflow_env import Stack
from tests.support.browser import Visitor
from tests.support.process_trees import eventually

MODEL = "asked-about"
DAG_FILE = f"""
import json
from pathlib import Path
from airflow.sdk import DAG, get_current_context, task
from talaria_airflow import sft_dag
from talaria_airflow.dag import tasks
from talaria_airflow.operators.approval import AskOperator

sft_dag()
with DAG("asks", schedule=None, is_paused_upon_creation=False):

    @task
    def promote(answer):
        return tasks.promote({{"name": {MODEL!r}}}, {{"model": {MODEL!r}, "candidate": 1}}, answer, get_current_context())

    promote(AskOperator(task_id="approve", compared=json.loads(Path(__file__).with_suffix(".json").read_text())).output)
"""
until = partial(eventually, within=120, every=0.3)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def airflow(shared_stack: Stack, stack_settings: dict[str, str]) -> Iterator[Stack]:
    """An Airflow with `sft`, which is paused, and with a run that asks about version 1 of a model."""
    api, client = shared_stack.api, MlflowClient(shared_stack.ports.mlflow_url)
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, "s3://nowhere/1", await_creation_for=None)
    [bundle] = json.loads(stack_settings["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    folder = Path(bundle["kwargs"]["path"])
    (folder / "pages.json").write_text(json.dumps(COMPARED | {"model": MODEL, "version": 1}))
    (folder / "pages.py").write_text(DAG_FILE)
    until(lambda: api.has_dag("sft") and api.has_dag("asks"))
    api.call("PATCH", "/api/v2/dags/sft", json={"is_paused": True})
    api.trigger("asks", "first", {})
    yield shared_stack
    for path in folder.glob("pages.*"):
        path.unlink()


@pytest.fixture
def visitor(browser: Any, airflow: Stack) -> Iterator[Visitor]:
    context = browser.new_context(viewport={"width": 1300, "height": 1400})
    yield Visitor(context, airflow.ports.airflow_url, "admin", airflow.home.password())
    context.close()


class Form:
    """The trigger form of `sft`, which stays paused."""

    def __init__(self, visitor: Visitor) -> None:
        self.page = visitor.open("dags/sft")
        self.page.get_by_test_id("trigger-dag-button").click()
        self.dialog = self.page.locator("[role=dialog]")  # by its role as people hear it, it is hidden behind a message
        self.dialog.get_by_text("Unpause sft on trigger").click()

    def type(self, name: str, text: str) -> None:
        """Type as people do, and leave the field: it shows what was typed."""
        field = self.field(name)
        field.fill("")
        field.press_sequentially(text)
        field.blur()
        expect(field).to_have_value(text)

    def field(self, name: str) -> Any:
        return self.dialog.locator(f'input[name="element_{name}"]')

    def trigger(self) -> None:
        self.page.get_by_test_id("trigger-dag-submit").press("Enter")  # messages of earlier refusals may lie over it

    def is_refused(self, sentence: str) -> None:
        self.trigger()
        told = self.dialog.get_by_text(sentence)
        expect(told).to_be_visible()
        told.scroll_into_view_if_needed()


def test_the_form_refuses_what_cannot_be_and_sends_what_was_typed(visitor: Visitor, airflow: Stack) -> None:
    form = Form(visitor)
    expect(form.field("train.epochs")).to_be_visible()
    visitor.shoot("trigger-form")
    for name, wrong, sentence, right in (
        ("config", "tinny", "unknown configuration 'tinny'", "tiny"),
        ("train.epochs", "0", "train.epochs: should be greater than or equal to 1, got 0.", "3"),
        ("train.epochs", "1e6", "train.epochs: should be less than or equal to 100000, got 1", "3"),
        ("train.lr", "-1", "train.lr: should be greater than 0, got -1.", "1e-3"),
        ("train.num_processes", "two", "train.num_processes: should be a valid integer", "2"),
    ):
        form.type(name, wrong)
        form.is_refused(sentence)
        visitor.shoot(f"refused-{name}")
        form.type(name, right)
    assert airflow.api.unfinished_runs("sft") == [], "nothing began"
    form.trigger()
    run_id = until(lambda: airflow.api.unfinished_runs("sft"))[0]
    sent = airflow.api.run("sft", run_id)["conf"]
    typed = {"config": "tiny", "train.epochs": "3", "train.lr": "1e-3", "train.num_processes": "2"}
    assert {name: sent[name] for name in typed} == typed


def test_a_person_sees_what_is_asked_and_the_answer_is_recorded(visitor: Visitor, airflow: Stack) -> None:
    until(lambda: {task["state"] for task in airflow.api.tasks("asks", "first")} >= {"awaiting_input"})
    page = visitor.open("dags/asks/runs/first/tasks/approve/required_actions")
    expect(page.get_by_text(f"Promote {MODEL} 1?")).to_be_visible()
    for column in ("base", "champion (version 3)", "candidate (version 1)"):
        expect(page.get_by_role("columnheader", name=column, exact=True)).to_be_visible()
    expect(page.get_by_role("row", name="held-out loss")).to_contain_text("1.2346")
    expect(page.get_by_role("row", name="base | <b>five</b> |")).to_be_visible()  # what a model says is text
    answers = page.get_by_role("link", name="Answers of base and candidate side by side")
    expect(answers).to_have_attribute("href", COMPARED["answers_url"])
    visitor.shoot("approval")
    page.get_by_test_id("hitl-option-Reject").click()
    expect(page.get_by_text("from admin")).to_be_visible()
    until(lambda: airflow.api.run("asks", "first")["state"] == "success")
    assert "was rejected by admin" in airflow.api.xcom("asks", "first", "promote")["reason"]
    version = MlflowClient(airflow.ports.mlflow_url).get_model_version(MODEL, "1")
    assert tags_of(version)["talaria.rejected_by"] == "admin"
    assert visitor.errors == []
