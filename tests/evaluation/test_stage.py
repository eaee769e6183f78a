"""Held-out loss and answers, base and tuned, on the packed path; honest where there is nothing to measure on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from talaria.common.errors import DataError
from talaria.evaluation.heldout_loss import heldout_loss, open_model
from talaria.evaluation.stage import evaluate, run
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.stage import tokenize

from tests.support import tiny_pipeline


@pytest.fixture(scope="session")
def report(folders):
    return json.loads((folders["evaluate"] / "report.json").read_text())


def test_held_out_loss_is_hugging_faces_own_on_padded_rows(folders, report):
    from transformers import AutoModelForCausalLM

    split = open_tokens(folders["tokenize"])["validation"]
    for name, folder in {"tuned": folders["train"] / "model", "base": folders["base"]}.items():
        model = AutoModelForCausalLM.from_pretrained(folder)
        total, count = 0.0, 0
        for place in range(len(split)):
            ids, mask, _ = split.gather([place])
            labels = torch.where(torch.from_numpy(mask), torch.from_numpy(ids).long(), -100)
            with torch.no_grad():
                loss = model(torch.from_numpy(ids).long()[None], labels=labels[None]).loss
            total += float(loss) * int(mask[1:].sum())
            count += int(mask[1:].sum())
        assert report[name]["loss"] == pytest.approx(total / count, rel=1e-5)
        assert report["heldout"]["supervised_tokens"] == count


def test_the_batch_size_does_not_change_the_loss(folders):
    split = open_tokens(folders["tokenize"])["validation"]
    model = open_model(folders["train"] / "model", torch.device("cpu"))
    wide, narrow = heldout_loss(model, split, 10_000), heldout_loss(model, split, 1)
    assert narrow.loss == pytest.approx(wide.loss, rel=1e-6)
    assert narrow.supervised_tokens == wide.supervised_tokens


def test_the_tuned_model_beats_the_base(report):
    assert report["tuned"]["loss"] < report["base"]["loss"] / 5
    assert report["tuned"]["exact_match"] > report["base"]["exact_match"] == 0
    assert report["tuned"]["stopped"] > report["base"]["stopped"] == 0


def test_every_kept_model_has_its_loss(folders, report):
    assert [export["step"] for export in report["exports"]] == [20]
    assert report["tuned"]["loss"] < report["exports"][0]["loss"] < report["base"]["loss"]


def test_samples_show_prompt_reference_and_both_answers(folders, report):
    lines = [json.loads(line) for line in (folders["evaluate"] / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == report["prompts"] == 8
    assert report["tuned"]["exact_match"] == sum(line["tuned_match"] for line in lines) / 8
    assert report["tuned"]["stopped"] == sum(line["tuned_stopped"] for line in lines) / 8
    for line in lines:
        assert line["prompt"].endswith("<|im_start|>assistant\n")
        assert line["reference"].removesuffix("!") in tiny_pipeline.COLOURS
        assert line["tuned_match"] == (line["tuned"].strip() == line["reference"].strip())
        assert line["base"] is not None


def test_without_a_held_out_split_the_report_says_so(folders, tmp_path):
    settings = tiny_pipeline.config(tokenize={"validation_fraction": 0.0})
    tokenize(folders["convert"] / "messages.parquet", folders["base"], tmp_path / "tokens", settings.tokenize)
    out = tmp_path / "out"
    out.mkdir()
    facts = run(settings, {"train": folders["train"], "tokenize": tmp_path / "tokens", "base": folders["base"]}, out)
    report = json.loads((out / "report.json").read_text())
    assert (report["heldout"], report["tuned"], report["base"], report["exports"]) == (None, None, None, [])
    assert "validation_fraction" in report["note"]
    assert facts["heldout_loss"] is None
    assert (out / "samples.jsonl").read_text() == ""


def test_no_prompts_leave_the_loss(folders, tmp_path):
    settings = tiny_pipeline.config(evaluate={"prompts": 0})
    facts = evaluate(
        settings, model=folders["train"] / "model", tokens=folders["tokenize"], base=None, output=tmp_path / "evaluation"
    )
    assert math.isfinite(facts["heldout_loss"])
    assert (facts["exact_match"], facts["base_heldout_loss"], facts["prompts"]) == (None, None, 0)


def test_the_command_leaves_nothing_behind_when_it_fails(folders, tmp_path):
    settings = tiny_pipeline.config()
    with pytest.raises(DataError, match=r"no config\.json"):
        evaluate(settings, model=tmp_path, tokens=folders["tokenize"], base=None, output=tmp_path / "evaluation")
    with pytest.raises(DataError, match="not a tokens folder"):
        evaluate(settings, model=folders["base"], tokens=tmp_path, base=None, output=tmp_path / "evaluation")
    assert list(tmp_path.iterdir()) == []


def test_the_last_export_is_not_measured_twice(folders, tmp_path, monkeypatch):
    """It is the final model under another name, as training makes it."""
    import os
    import shutil

    import talaria.evaluation.heldout_loss

    train = tmp_path / "train"
    shutil.copytree(folders["train"], train, copy_function=os.link)
    shutil.copytree(train / "model", train / "exports" / "step-00000120", copy_function=os.link)
    opened = []
    real = talaria.evaluation.heldout_loss.open_model
    monkeypatch.setattr(
        talaria.evaluation.heldout_loss, "open_model", lambda folder, device: opened.append(folder.name) or real(folder, device)
    )
    out = tmp_path / "out"
    out.mkdir()
    run(tiny_pipeline.config(evaluate={"prompts": 0}), {**folders, "train": train}, out)
    report = json.loads((out / "report.json").read_text())
    assert report["exports"][1]["loss"] == report["tuned"]["loss"]
    assert "step-00000120" not in opened
    assert "step-00000020" in opened
