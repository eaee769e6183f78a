"""Tasks within the stage evaluate: a trained model and its base answer, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from talaria.common.errors import DataError
from talaria.config.load import parse
from talaria.evaluation.items import Items
from talaria.evaluation.stage import evaluate
from talaria.stages.table import STAGES, key_of

from tests.support import tiny_pipeline

PROMPTS = [(f"{n}{n} Say {colour}", colour) for n, colour in enumerate(tiny_pipeline.COLOURS, 700)]


@pytest.fixture(scope="session")
def folders(shared_store: Path) -> dict[str, Path]:
    return {name: output.path for name, output in tiny_pipeline.trained(shared_store).items()}


@pytest.fixture(scope="session")
def colours(tmp_path_factory, folders) -> Path:
    """Four prompts that are answered, two that are chosen, and one that the model was trained on."""
    import pyarrow.parquet as pq
    from talaria.tokenization.dataset import open_tokens

    row = open_tokens(folders["tokenize"])["train"].rows[0]
    trained = pq.read_table(folders["convert"] / "messages.parquet")["messages"][int(row)].as_py()[0]["content"]
    lines = [{"prompt": prompt, "expected": f"{colour}!", "tags": [colour]} for prompt, colour in PROMPTS]
    lines += [
        {"prompt": prompt, "judge": "choice", "choices": ["green!", "blue!"], "expected": f"{colour}!"}
        for prompt, colour in PROMPTS[:2]
    ]
    lines.append({"id": "seen", "prompt": f"{trained}!", "expected": f"{trained.split()[-1]}!"})
    path = tmp_path_factory.mktemp("tasks") / "colours.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(colours: Path, **more: object):
    return tiny_pipeline.config(evaluate={"prompts": 0, "tasks": [{"name": "colours", "file": str(colours)}], **more})


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, colours, folders) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "out"
    data = folders["convert"] / "messages.parquet"
    model, base = folders["train"] / "model", folders["base"]
    facts = evaluate(settings(colours), model=model, tokens=folders["tokenize"], base=base, output=output, data=data)
    assert facts["tasks"]["colours"]["tuned"] > 0.4 > facts["tasks"]["colours"]["base"]
    return output


def test_the_report_has_scores_slices_and_what_was_trained_on(evaluated):
    report = json.loads((evaluated / "report.json").read_text())
    tuned = report["tasks"]["tuned"]["colours"]
    assert tuned["tags"].keys() == set(tiny_pipeline.COLOURS)
    assert tuned["failed"] == 0
    (seen,) = report["contaminated"]["colours"]
    assert seen.startswith("seen-")


def test_a_row_per_prompt_has_both_answers_and_their_verdicts(evaluated):
    lines = [json.loads(line) for line in (evaluated / "tasks.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines[:4]] == [prompt for prompt, _ in PROMPTS]
    assert {line["tuned"] for line in lines if line["tuned_right"] and line["judge"] == "exact"} <= {
        f"{colour}!" for colour in tiny_pipeline.COLOURS
    }
    assert all(line["base_why"] for line in lines if not line["base_right"])
    kept = Items.read(evaluated / "items" / "tuned.parquet").metrics["task/colours"]
    assert kept.items == [line["item"] for line in lines]
    assert kept.right.tolist() == [line["tuned_right"] for line in lines]


def test_likelihoods_are_those_of_the_model_one_by_one(folders, colours):
    from talaria.evaluation.greedy_answers import open_for_answers
    from talaria.evaluation.tasks.model_answers import TaskTests

    model = folders["train"] / "model"
    tests = TaskTests.of(settings(colours).evaluate, model)
    hf = open_for_answers(model, torch.device("cpu"))
    prompt, choices = tests.papers[0].prompts[4].ids, ["green!", "a longer blue!"]
    found = tests._likelihoods(hf, prompt, choices, 10_000)
    for choice, likelihood in zip(choices, found, strict=True):
        ids = [*prompt.tolist(), *tests.tokenizer.encode(choice, add_special_tokens=False), tests.ends[0]]
        with torch.no_grad():
            chances = hf(torch.tensor([ids])).logits[0].log_softmax(-1)
        alone = sum(float(chances[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
        assert likelihood == pytest.approx(alone, rel=1e-4)
    assert tests._likelihoods(hf, prompt, choices, 1) == pytest.approx(found, rel=1e-4)


def test_contamination_can_be_refused(folders, colours, tmp_path):
    given = {"model": folders["train"] / "model", "tokens": folders["tokenize"], "base": None, "output": tmp_path / "out"}
    with pytest.raises(DataError, match=r"task colours, seen-\w+: its prompt is in the training data \(1 such items in all\)"):
        evaluate(settings(colours, contamination="refuse"), data=folders["convert"] / "messages.parquet", **given)
    with pytest.raises(DataError, match="no training data was given"):
        evaluate(settings(colours, contamination="refuse"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_the_chat_template_does_not_take_is_told_first(folders, tmp_path):
    line = {"prompt": "p", "tools": [{"name": "add", "parameters": {}}], "expected": [], "judge": "tool_call"}
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    chosen = tiny_pipeline.config(evaluate={"tasks": [{"name": "calls", "file": str(tmp_path / "t.jsonl")}]})
    with pytest.raises(DataError, match=r"task calls, \w+: .*plain ChatML, does not render tools"):
        evaluate(chosen, model=folders["base"], tokens=folders["tokenize"], base=None, output=tmp_path / "out")


def test_another_file_is_another_key_and_another_place_is_not(tmp_path):
    def key(file: Path, text: str) -> str:
        file.write_text(text)
        config = parse({"name": "x", "evaluate": {"tasks": [{"name": "t", "file": str(file)}]}}, "test")
        return key_of(STAGES["evaluate"], config, dict.fromkeys(STAGES, "k"))[0]

    line = '{"prompt": "p", "expected": "x"}'
    first = key(tmp_path / "a.jsonl", line)
    assert key(tmp_path / "b.jsonl", line) == first
    assert key(tmp_path / "b.jsonl", f"{line}\n{line}") != first
