"""The files of an MLflow run that people open: data report, sample page, loss curves, evaluation, answers as a table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from talaria.evaluation.compare.page import page as compared_page
from talaria.evaluation.compare.rows import of_evaluation
from talaria.evaluation.stage import REPORT, SAMPLES, TASK_TABLE
from talaria.registry.loss_plot import loss_curves
from talaria.registry.version_items import log_evaluation
from talaria.tracking.run_log import RunLog

ANSWERS = "evaluation/answers.html"
TABLE, TASKS = "evaluation/answers.json", "evaluation/tasks.json"


def log_artifacts(log: RunLog, inputs: Mapping[str, Path]) -> None:
    """Log what there is; doing it again replaces the files."""
    client, run = log.client, log.run_id
    for name, folder in (("report.html", "data"), ("report.json", "data")):
        if "report" in inputs and (inputs["report"] / name).is_file():
            client.log_artifact(run, str(inputs["report"] / name), folder)
    if (inputs["evaluate"] / REPORT).is_file():
        client.log_artifact(run, str(inputs["evaluate"] / REPORT), "evaluation")
    log_evaluation(client, run, inputs["evaluate"])
    with tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
        picture, page = Path(scratch) / "loss.png", Path(scratch) / "samples.html"
        if loss_curves(inputs["train"], picture):
            client.log_artifact(run, str(picture), "plots")
        write_samples(inputs["tokenize"], page)
        client.log_artifact(run, str(page), "data")
        if rows := of_evaluation(inputs["evaluate"]):
            answers = Path(scratch) / Path(ANSWERS).name
            answers.write_text(compared_page(rows, "Answers of base and tuned model"), encoding="utf-8")
            client.log_artifact(run, str(answers), "evaluation")
    _log_table(log, inputs["evaluate"] / SAMPLES, TABLE)
    _log_table(log, inputs["evaluate"] / TASK_TABLE, TASKS)


def write_samples(tokens: Path, page: Path) -> None:
    from talaria.tokenization.inspection import write_html

    write_html(tokens, page)


def _log_table(log: RunLog, samples: Path, name: str) -> None:
    """Answers before and after, a row a prompt. log_table appends to a table that is there, so that one is left alone."""
    lines = samples.read_text(encoding="utf-8").splitlines() if samples.is_file() else []
    there = {file.path for file in log.client.list_artifacts(log.run_id, "evaluation")}
    if lines and name not in there:
        import pandas

        rows = pandas.DataFrame([json.loads(line) for line in lines], dtype=object)
        log.client.log_table(log.run_id, rows, name)
