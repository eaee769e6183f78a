"""Public benchmarks by name, through lm-evaluation-harness (the extra `benchmarks`), as results per question like a task's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from talaria.common.errors import ConfigError, DataError
from talaria.common.files import digest, file_digest
from talaria.common.user_code import ALLOW
from talaria.config.evaluation_settings import BenchmarkSettings
from talaria.config.folder import config_folder
from talaria.evaluation.tasks.scoring import Row, TaskResult
from talaria.evaluation.tasks.task_file import TaskItem
from talaria.evaluation.tasks.verdicts import Verdict

_TOKENS_A_QUESTION = 1024
"""What a question may be expected to need, for the number of questions in a batch."""


def check_benchmark(benchmark: BenchmarkSettings) -> None:
    """Refuse what can be refused without a model. Raises ConfigError, DataError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("evaluate.benchmarks needs lm-evaluation-harness; install it: pip install 'talaria[benchmarks]'.")
    if benchmark.folder is not None:
        if os.environ.get(ALLOW) != "1":
            raise ConfigError(
                f"evaluate.benchmarks.folder: {benchmark.folder} is code of your own, as the harness runs what its YAML says; "
                f"set {ALLOW}=1 where it runs to allow it."
            )
        folder_of(benchmark)


def folder_of(benchmark: BenchmarkSettings) -> Path | None:
    """The folder of a benchmark of your own: the path as it is, or else in the configuration folder. Raises DataError."""
    if benchmark.folder is None:
        return None
    for path in (benchmark.folder, config_folder() / benchmark.folder):
        if path.is_dir():
            return path.absolute()
    raise DataError(f"{benchmark.folder}: there is no such folder for benchmark {benchmark.name} (evaluate.benchmarks).")


def benchmark_fingerprint(benchmark: BenchmarkSettings) -> Any:
    """What decides over the questions and stands in no setting."""
    check_benchmark(benchmark)
    folder = folder_of(benchmark)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return [version("lm_eval"), [[str(path.relative_to(folder)), file_digest(path)] for path in files] if folder else None]


def manager(benchmark: BenchmarkSettings) -> Any:
    """lm-evaluation-harness's list of tasks, which knows this one. Raises DataError where it does not."""
    from lm_eval.tasks import TaskManager

    folder = folder_of(benchmark)
    known = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    if benchmark.task not in known.all_tasks:
        where = folder or f"lm-evaluation-harness {version('lm_eval')}"
        raise DataError(f"benchmark {benchmark.name}: {where} has no task {benchmark.task!r}.")
    load = known.load

    def load_with_examples_apart(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        for task in loaded["tasks"].values():
            _keep_examples_apart(task)
        return loaded

    known.load = load_with_examples_apart
    return known


def _keep_examples_apart(task: Any) -> None:
    """Where a task's few-shot examples come from the split that is asked, have the harness leave out the asked question.

    It does so only if the two names that it compares are equal (findings/lm_eval_fewshot_leak.sh).
    """
    config, shots = task.config, getattr(task, "fewshot_cfg", None)
    if shots is None or (shots.split is None and shots.samples is not None):
        return
    asked = config.test_split or config.validation_split
    if asked == (shots.split or config.training_split or config.validation_split or config.test_split):
        config.test_split = shots.split = asked


def questions(benchmark: BenchmarkSettings, tasks: Any) -> list[TaskItem]:
    """What a benchmark will ask, without the chat template and the examples before it; `tasks`: its `manager`.

    An item's id is TASK/NUMBER, its place in the harness's data. Raises DataError where the data cannot be had.
    """
    with _harness(benchmark):
        loaded = tasks.load([benchmark.task])["tasks"]
        found = [
            (f"{name}/{number}", _question(task, doc))
            for name, task in loaded.items()
            for number, doc in task.doc_iterator(limit=benchmark.limit)
        ]
    return [_item(name, text, None, []) for name, text in found]


def _question(task: Any, doc: Any) -> str:
    """The text by which the harness itself would look for a question in training data, or else the question."""
    text = task.doc_to_decontamination_query(doc) if task.should_decontaminate() else task.doc_to_text(doc)
    return str(task.doc_to_choice(doc)[text] if isinstance(text, int) else text)


@contextlib.contextmanager
def _harness(benchmark: BenchmarkSettings) -> Iterator[None]:
    """Let the harness load the benchmark in its folder, and tell what it cannot do. Raises DataError."""
    folder, before = folder_of(benchmark), Path.cwd()
    try:
        if folder:
            os.chdir(folder)  # data_files of its YAML count from there
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"benchmark {benchmark.name}: lm-evaluation-harness cannot run it ({_first_line(error)}).") from error
    finally:
        os.chdir(before)


def take(benchmark: BenchmarkSettings, tasks: Any, hf: Any, tokenizer: Any, max_tokens: int) -> TaskResult:
    """Let an opened model answer a benchmark. `tasks`: its `manager`; `max_tokens`: of a batch.

    Raises DataError where the data cannot be had, or the metric is not one number from 0 to 1 for each question.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=hf, tokenizer=tokenizer, batch_size=max(1, max_tokens // _TOKENS_A_QUESTION))
    with _harness(benchmark):
        found = simple_evaluate(
            model,
            tasks=[benchmark.task],
            task_manager=tasks,
            num_fewshot=benchmark.few_shot,
            limit=benchmark.limit,
            apply_chat_template=benchmark.chat,
            fewshot_as_multiturn=benchmark.chat and bool(benchmark.few_shot),
            bootstrap_iters=0,
            log_samples=True,
        )
    samples = found["samples"]
    rows = [_row(benchmark, name, one, len(samples) > 1) for name in sorted(samples) for one in _chosen(benchmark, samples[name])]
    if not rows:
        raise DataError(f"benchmark {benchmark.name}: has no question.")
    return TaskResult(benchmark, rows)


def _chosen(benchmark: BenchmarkSettings, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples of one filter: that of the metric (METRIC,FILTER), or else the first."""
    wanted = (benchmark.metric or "").partition(",")[2]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    if wanted and wanted not in filters:
        raise DataError(f"benchmark {benchmark.name}: has no filter {wanted!r}, but {', '.join(filters)}.")
    return [sample for sample in samples if sample["filter"] == (wanted or filters[0])]


def _row(benchmark: BenchmarkSettings, subtask: str, sample: Mapping[str, Any], several: bool) -> Row:
    metric = (benchmark.metric or "").partition(",")[0] or sample["metrics"][0]
    score = sample.get(metric)
    if metric not in sample["metrics"]:
        raise DataError(f"benchmark {benchmark.name}: has no metric {metric!r} of questions, but {', '.join(sample['metrics'])}.")
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise DataError(f"benchmark {benchmark.name}: {metric} is not a number from 0 to 1 a question; name another metric.")
    settings = benchmark.key_fields()
    asked = [subtask, {name: settings[name] for name in settings if name not in ("name", "limit")}]
    asked += [sample[f"{part}_hash"] for part in ("doc", "prompt", "target")]
    given = sample["filtered_resps"]
    answer = given[0] if given and isinstance(given[0], str) else None
    item = _item(digest(asked)[:16], str(sample["arguments"][0][0]), sample["target"], [subtask] if several else [])
    return Row(item, answer, Verdict(float(score)), float(score) >= benchmark.pass_score)


def _item(name: str, question: str, expected: Any, tags: list[str]) -> TaskItem:
    messages = [{"role": "user", "content": question}]
    return TaskItem(name, messages, None, "benchmark", expected, [], tags, {})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
