"""The page as people see it: headless Chromium in the real Airflow UI. Screenshots are left in build/screenshots/."""

from __future__ import annotations

import json
import random
import re
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from talaria.runs.columns import thin

from tests.plugins.monitor.server import TRAINED, Airflow
from tests.support import synthetic_runs as synthetic
from tests.support.browser import Visitor

Grow = Callable[[Path, int, int], None]


@pytest.fixture
def visit(browser: Any, airflow: Airflow) -> Iterator[Callable[..., Visitor]]:
    contexts = []

    def enter(user: str = "viewer", width: int = 1280, height: int = 900, **options: Any) -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        return Visitor(context, airflow.url, user, user)

    yield enter
    for context in contexts:
        context.close()


@pytest.fixture
def live(store: Path) -> Path:
    """A training under way, and two finished ones."""
    synthetic.finished(store, 2, steps=400, total=400, seed=2, lr=2e-5, start=synthetic.START)
    synthetic.finished(store, 3, steps=400, total=400, seed=3, epochs=1, start=synthetic.START - 9000)
    return synthetic.running(store, 1, steps=230, total=400, seed=1, restart_at=120, start=time.time() - 230 * 1.3)


def test_the_menu_leads_to_a_page_that_keeps_up_by_itself(visit: Callable[..., Visitor], live: Path, grow: Grow) -> None:
    visitor = visit()
    frame = visitor.open_menu()
    expect(frame.locator("#head")).to_contain_text("step 230 of 400")
    expect(frame.locator("#head")).to_contain_text("8 ranks")
    expect(frame.locator("#head")).to_contain_text("1 restart")
    expect(frame.locator("#facts")).to_contain_text("at step 120")
    expect(frame.locator("#plot canvas")).to_be_visible()
    frame.locator("body").evaluate("() => (window.sameDocument = true)")
    visitor.shoot("live-light")
    grow(live, 231, 260)
    expect(frame.locator("#head")).to_contain_text("step 260 of 400")
    expect(frame.locator("#legend")).to_contain_text("260")
    assert frame.locator("body").evaluate("() => window.sameDocument")
    assert visitor.errors == []


def test_a_tile_switches_the_metric(visit: Callable[..., Visitor], live: Path) -> None:
    visitor = visit()
    frame = visitor.open_menu()
    expect(frame.get_by_role("heading", name="Training loss")).to_be_visible()
    frame.get_by_role("button", name="Gradient norm").click()
    expect(frame.get_by_role("heading", name="Gradient norm")).to_be_visible()
    expect(frame.get_by_role("button", name="Gradient norm")).to_have_attribute("aria-pressed", "true")
    expect(frame.locator("#legend")).to_contain_text("Gradient norm")
    rows = [json.loads(line) for line in (live / "metrics.jsonl").read_text().splitlines()]
    expect(frame.locator("#legend")).to_contain_text(f"{rows[-1]['grad_norm']:.3f}")
    assert visitor.errors == []


def test_runs_are_compared_over_tokens(visit: Callable[..., Visitor], live: Path) -> None:
    visitor = visit(color_scheme="dark", height=1000)
    frame = visitor.open_menu()
    for number in (2, 3):
        frame.get_by_role("button", name=f"Compare qwen3-4b-base {synthetic.key(number)[:8]}").click()
    expect(frame.locator("#legend tbody tr")).to_have_count(3)
    table = frame.locator("#compare")
    expect(table.get_by_role("row", name="train.lr")).to_contain_text("0.00002")
    expect(table.get_by_role("row", name="train.epochs")).to_be_visible()
    expect(table.get_by_role("row", name="train.seed")).to_have_count(0)
    frame.get_by_role("button", name="Tokens", exact=True).click()
    expect(frame.get_by_role("button", name="Tokens", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(frame.locator("#plot canvas")).to_be_visible()
    visitor.shoot("compare-dark")
    frame.get_by_role("button", name=f"Compare qwen3-4b-base {synthetic.key(3)[:8]}").click()
    expect(frame.locator("#legend tbody tr")).to_have_count(2)
    assert visitor.errors == []


def test_a_stretch_of_the_chart_opens_to_a_closer_look(visit: Callable[..., Visitor], store: Path) -> None:
    synthetic.finished(store, 1, steps=20_000, total=20_000, save_every=1000, eval_every=1000)
    visitor = visit()
    page = visitor.open("talaria/")
    expect(page.locator("#plot canvas")).to_be_visible()
    box = page.locator("#plot .u-over").bounding_box()
    with page.expect_response(re.compile("start=")) as asked:
        page.mouse.move(box["x"] + box["width"] * 0.50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.51, box["y"] + 60, steps=5)
        page.mouse.up()
    steps = asked.value.json()["curves"]["loss"]["step"]
    assert steps == list(range(steps[0], steps[-1] + 1)), "every step of the stretch is there"
    page.get_by_role("button", name="Whole run").click()
    expect(page.get_by_role("button", name="Whole run")).to_have_count(0)
    assert visitor.errors == []


def test_a_hundred_thousand_steps_are_drawn(visit: Callable[..., Visitor], store: Path) -> None:
    """How long it takes is benchmarks/monitor.py's to say."""
    synthetic.finished(store, 1, steps=100_000, total=100_000, spikes={71_234: 9.5}, save_every=5000, eval_every=1000)
    visitor = visit()
    page = visitor.open("talaria/")
    expect(page.locator("#plot canvas")).to_be_visible()
    expect(page.locator("#head")).to_contain_text("100,000")
    assert visitor.errors == []


def test_a_dag_run_and_its_task_show_their_own_training(visit: Callable[..., Visitor], airflow: Airflow, store: Path) -> None:
    synthetic.finished(store, TRAINED, name="of-this-dag-run")
    synthetic.finished(store, 5, name="of-another", start=synthetic.START + 9000)
    visitor = visit()
    for path in (f"dags/sft/runs/{airflow.dag_run}", f"dags/sft/runs/{airflow.dag_run}/tasks/train"):
        page = visitor.open(path)
        page.get_by_role("tab", name="Training").or_(page.locator("a[href*='plugin/training-of']")).first.click()
        frame = visitor.frame()
        expect(frame.locator("#runs")).to_be_hidden()  # a list of one tells nothing
        expect(frame.locator("#head h2")).to_have_text("of-this-dag-run")
        expect(frame.locator("#scope")).to_contain_text(airflow.dag_run)
    visitor.shoot("dag-run")
    frame.get_by_role("link", name="all runs").click()
    expect(frame.locator("#runs .card")).to_have_count(2)
    assert visitor.errors == []


def test_the_link_to_mlflow_opens_the_run_there(visit: Callable[..., Visitor], store: Path, registered: str) -> None:
    synthetic.finished(store, 1, mlflow_run_id=registered)
    visitor = visit()
    frame = visitor.open_menu()
    expect(frame.locator("#facts")).to_contain_text("promoted. Held-out loss after 100 steps.")
    expect(frame.locator("#facts .chip")).to_have_text("champion")
    with visitor.context.expect_page() as opened:
        frame.get_by_role("link", name="MLflow run").click()
    assert opened.value.url.partition("?")[0].endswith(registered)
    expect(opened.value.get_by_text("qwen3-4b-base").first).to_be_visible()
    assert visitor.errors == []


def test_the_theme_is_airflows(visit: Callable[..., Visitor], live: Path) -> None:
    visitor = visit(color_scheme="light")
    frame = visitor.open_menu()

    def background() -> str:
        return str(frame.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor"))

    expect(frame.locator("html")).not_to_have_class("dark")
    light = background()
    visitor.page.emulate_media(color_scheme="dark")
    expect(frame.locator("html")).to_have_class("dark")
    assert background() != light
    own = visitor.page.evaluate("() => getComputedStyle(document.documentElement).getPropertyValue('--chakra-colors-bg')")
    assert own.strip() == frame.locator("html").evaluate("(html) => getComputedStyle(html).getPropertyValue('--bg')").strip()
    visitor.shoot("live-dark")
    assert visitor.errors == []


def test_on_a_phone_nothing_is_cut_off(visit: Callable[..., Visitor], live: Path) -> None:
    visitor = visit(width=390, height=844)
    page = visitor.open("talaria/")
    expect(page.locator("#plot canvas")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    visitor.shoot("phone")
    assert visitor.errors == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_axe_finds_nothing_serious(visit: Callable[..., Visitor], live: Path, store: Path, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    failed = synthetic.training(
        store / ".work" / f"train-{synthetic.key(4)}", state="failed", reason="loss is not finite at step 38"
    )
    visitor = visit(width=width, color_scheme=scheme)
    page = visitor.open(f"talaria/#runs={failed.name.removeprefix('train-')},{synthetic.key(1)}")
    expect(page.locator("#compare")).to_be_visible()
    page.get_by_text("Settings").click()
    found = Axe().run(page).response["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []


def test_the_page_thins_as_the_server_does(visit: Callable[..., Visitor]) -> None:
    noise = random.Random(5)
    values = [round(noise.gauss(0, 1), 2) for _ in range(3000)]  # rounded, so that equal values occur
    page = visit().open("talaria/")
    code = "async (values) => (await import('./static/curves.js')).thin(values, 100)"
    assert page.evaluate(code, values) == thin(array("d", values), 100)


def test_a_hostile_name_stays_text(visit: Callable[..., Visitor], store: Path) -> None:
    hostile = "<img src=x onerror=document.title='owned'><b>"
    synthetic.training(store / ".work" / f"train-{synthetic.key(1)}", name=hostile, state="failed", reason=hostile)
    visitor = visit()
    page = visitor.open("talaria/")
    expect(page.locator("#head h2")).to_have_text(hostile)
    expect(page.locator("#head .alert")).to_contain_text(hostile)
    assert page.locator("main img").count() == 0
    assert page.title() == "Training"
    assert visitor.errors == []


def test_an_ended_session_and_an_empty_store_say_so(visit: Callable[..., Visitor], store: Path, live: Path) -> None:
    visitor = visit()
    page = visitor.open("talaria/?dag_id=sft&run_id=nothing")
    expect(page.locator("#empty")).to_contain_text("has not trained anything yet")
    page.get_by_role("link", name="all runs").click()
    expect(page.locator("#pulse")).to_have_text("Live")
    visitor.context.clear_cookies()
    expect(page.locator("#pulse")).to_contain_text("session has ended")
