#!/usr/bin/env bash
# lm-evaluation-harness: with --cache_requests a task asks yesterday's questions and compares with today's answers.
#
# Versions: lm_eval 0.4.13, datasets 5.2.0
# Guess:    a cache of the questions belongs to the data and to the template of the prompt.
# Seen:     its name holds the task's name, the number of examples and the tokenizer, but neither the data nor the prompt. After the rows of
#           the file were turned round, the questions come in their old order and the right answers in the new one: a model that knows all scores
#           1.0 before and 0.0 after. Another doc_to_text changes nothing that is asked. Without the cache both are as they should be.
# Effect:   a benchmark of one's own that is corrected keeps its old questions on every machine that ran it. Delete the cache, or pass
#           --cache_requests refresh. Talaria does not use this cache.
source "$(dirname "$0")/install.sh" lm_eval==0.4.13 datasets==5.2.0
export LM_HARNESS_CACHE_PATH="$work/requests" HF_HOME="$work/hf" TQDM_DISABLE=1
py - <<'PY'
import json
import logging

from datasets import disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

disable_progress_bars()
logging.disable(logging.WARNING)
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}


class Knows(LM):
    """Answers every question rightly, and keeps what it was asked."""

    def generate_until(self, requests, **_):
        self.asked = [request.args[0] for request in requests]
        return [next(city for land, city in CAPITALS.items() if land in question) for question in self.asked]

    def loglikelihood(self, requests, **_):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def score(lands, question, cached):
    with open("capitals.jsonl", "w") as file:
        file.writelines(json.dumps({"land": land, "city": CAPITALS[land]}) + "\n" for land in lands)
    task = {
        "task": "capitals", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "capitals.jsonl"}}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": question, "doc_to_target": "{{city}}", "metric_list": [{"metric": "exact_match"}],
    }
    model = Knows()
    found = simple_evaluate(model, tasks=[task], task_manager=TaskManager(include_defaults=False), cache_requests=cached, bootstrap_iters=0)
    value = found["results"]["capitals"]["exact_match,none"]
    print(f"cached {cached}, {lands}: {value}; asked {model.asked}")
    return value, model.asked[0]


lands, text, other = ["France", "Italy", "Spain", "Japan"], "Capital of {{land}}?", "Name the capital of {{land}}."
assert score(lands, text, True) == (1.0, "Capital of France?")
assert score(lands[::-1], text, True) == (0.0, "Capital of France?")
assert score(lands, other, True) == (1.0, "Capital of France?")
assert score(lands[::-1], other, False) == (1.0, "Name the capital of Japan.")
PY
