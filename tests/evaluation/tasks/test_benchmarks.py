"""Public benchmarks through lm-evaluation-harness: results per question, as the gate compares them. Offline, from a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from talaria.common.errors import ConfigError, DataError, UserError
from talaria.common.user_code import ALLOW
from talaria.config.evaluation_settings import BenchmarkSettings
from talaria.evaluation.items import Items
from talaria.evaluation.stage import run
from talaria.evaluation.tasks.benchmarks import check_benchmark, manager
from talaria.evaluation.tasks.checks import tasks_fingerprint
from talaria.tokenization.dataset import open_tokens

from tests.support import tiny_pipeline

QUESTIONS = [
    {"text": f"{number} Say {colour}", "answer": f"{colour}!"} for number in (123456, 777) for colour in ("green", "red")
]
YAML = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]
"""
CHOICE = """\
task: shades
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["{{answer}}", "blue!"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="the extra `benchmarks` is not installed")
    made = tmp_path / "own"
    made.mkdir()
    (made / "colours.yaml").write_text(YAML)
    (made / "shades.yaml").write_text(CHOICE)
    (made / "colours.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    monkeypatch.setenv(ALLOW, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return made


def benchmark(folder: Path | None, **more: Any) -> dict[str, Any]:
    return {"name": "colours", "task": "colours", **({"folder": str(folder)} if folder else {}), **more}


def test_a_benchmark_is_scored_by_question_beside_the_tasks(folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    told = [benchmark(folder), benchmark(folder, name="shades", task="shades", limit=2)]
    config = tiny_pipeline.config(evaluate={"benchmarks": told, "prompts": 0})
    out = tmp_path / "out"
    out.mkdir()
    facts = run(config, folders, out)
    scores = facts["tasks"]
    assert scores["colours"]["base"] == 0 < scores["colours"]["tuned"]
    tuned, base = (Items.read(out / "items" / f"{name}.parquet").metrics for name in ("tuned", "base"))
    assert len(tuned["task/colours"].items) == len(QUESTIONS)
    assert len(tuned["task/shades"].items) == 2
    assert tuned["task/colours"].items == base["task/colours"].items, "so the gate can pair them"
    lines = [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]
    answers = {line["messages"][0]["content"]: line for line in lines if line["task"] == "colours"}
    (green,) = (line for asked, line in answers.items() if "123456 Say green" in asked)
    assert (green["tuned"], green["expected"], green["tuned_right"]) == ("green!", "green!", True)
    assert "<|im_start|>user" in green["messages"][0]["content"], "asked through the chat template"
    for name in ("colours", "shades"):
        judged = [line["tuned_score"] for line in lines if line["task"] == name]
        assert scores[name]["tuned"] == sum(judged) / len(judged)
    assert (out / "task_files" / "colours" / "colours.yaml").is_file(), "so a champion can be asked the same"
    assert str(tmp_path) not in (out / "tasks.jsonl").read_text()


@pytest.mark.parametrize("splits", ["test_split: test", "validation_split: test\nfewshot_split: test"])
def test_the_examples_before_a_question_do_not_answer_it(folder: Path, splits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """findings/lm_eval_fewshot_leak.sh: the harness alone would tell the answer."""
    (folder / "colours.yaml").write_text(YAML.replace("test_split: test", splits))
    chosen = BenchmarkSettings(name="colours", task="colours", folder=folder, few_shot=2)
    monkeypatch.chdir(folder)
    (task,) = manager(chosen).load(["colours"])["tasks"].values()
    asked = [doc for _, doc in task.doc_iterator()]
    assert len(asked) == len(QUESTIONS)
    for doc in asked * 5:
        prompt = str(task.fewshot_context(doc, 2))
        assert prompt.count("Say") == 3
        assert prompt.count(doc["text"]) == 1, prompt


def test_a_metric_that_is_no_score_of_a_question_is_refused(folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    for metric, named in (("bleu", "not a number from 0 to 1"), ("f1", "no metric 'f1'"), ("exact_match,strict", "no filter")):
        out = tmp_path / metric
        out.mkdir()
        config = tiny_pipeline.config(evaluate={"benchmarks": [benchmark(folder, metric=metric)], "prompts": 0})
        with pytest.raises(DataError, match=named):
            run(config, folders, out)


def test_questions_that_were_trained_on_are_told_before_any_model_is_asked(
    folder: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = open_tokens(folders["tokenize"])["train"].rows[0]
    messages = pq.read_table(folders["convert"] / "messages.parquet")["messages"][int(row)].as_py()
    seen = {"text": messages[0]["content"], "answer": messages[1]["content"]}
    (folder / "colours.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [QUESTIONS[0], seen]))
    wanted = {"benchmarks": [benchmark(folder), benchmark(folder, name="shades", task="shades", limit=1)], "prompts": 0}
    (tmp_path / "warned").mkdir()
    run(tiny_pipeline.config(evaluate=wanted), folders, tmp_path / "warned")
    report = json.loads((tmp_path / "warned" / "report.json").read_text())
    assert report["contaminated"] == {"colours": ["colours/1"]}
    monkeypatch.setattr("talaria.evaluation.exam.Exam.take", None)  # nothing is measured
    with pytest.raises(DataError, match=r"task colours, colours/1: its prompt is in the training data"):
        run(tiny_pipeline.config(evaluate=wanted | {"contamination": "refuse"}), folders, tmp_path)


def test_what_cannot_be_run_is_refused_before_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has no task 'shadows'"):
        manager(BenchmarkSettings(name="x", task="shadows", folder=folder))
    with pytest.raises(DataError, match="no such folder"):
        check_benchmark(BenchmarkSettings(name="x", task="colours", folder=folder / "absent"))
    monkeypatch.delenv(ALLOW)
    with pytest.raises(ConfigError, match=f"{ALLOW}=1"):
        check_benchmark(BenchmarkSettings(name="x", task="colours", folder=folder))


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'talaria\[benchmarks\]'"):
        check_benchmark(BenchmarkSettings(name="arc", task="arc_easy"))


def test_the_key_knows_the_files_of_the_folder(folder: Path) -> None:
    settings = tiny_pipeline.config(evaluate={"benchmarks": [benchmark(folder)]}).evaluate
    before = tasks_fingerprint(settings)
    (folder / "colours.jsonl").write_text(json.dumps(QUESTIONS[0]))
    assert tasks_fingerprint(settings) != before


def test_names_are_those_of_the_gate() -> None:
    config = tiny_pipeline.config(
        evaluate={"benchmarks": [benchmark(None)]},
        promote={"metrics": [{"name": "task/colours"}]},
        tokenize={"validation_fraction": 0.1},
    )
    assert config.evaluate.tested == ["colours"]
    with pytest.raises(UserError, match="two tasks called colours"):
        tiny_pipeline.config(evaluate={"benchmarks": [benchmark(None), benchmark(None)]})
