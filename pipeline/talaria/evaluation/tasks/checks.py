"""What of a configuration's tasks can be refused before a model is trained, and what only its training data tells."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talaria.common.errors import DataError
from talaria.common.user_code import load_function, module_digest
from talaria.config.evaluation_settings import Evaluate
from talaria.evaluation.tasks.benchmarks import benchmark_fingerprint, check_benchmark, folder_of
from talaria.evaluation.tasks.contamination import contaminated, prompts_of
from talaria.evaluation.tasks.task_file import TaskItem, load_items, task_digest, task_path
from talaria.evaluation.tasks.verdicts import FUNCTION

FILES = "task_files"
"""Folder in evaluate's output with a copy of every task's file, so that another model can be asked the same later."""


def check_tasks(settings: Evaluate) -> None:
    """Raises DataError for a file that cannot be used, ConfigError for a function that is not there or not allowed."""
    for task in settings.tasks:
        if task.function is not None:
            load_function(FUNCTION, task.function)
        load_items(task)
    for benchmark in settings.benchmarks:
        check_benchmark(benchmark)


def tasks_fingerprint(settings: Evaluate) -> Any:
    """What decides over the results of tasks and stands in no setting: their files, and the code of users' own functions."""
    if not settings.tested:
        return None
    own = [task.function for task in settings.tasks if task.function is not None]
    files, functions = [task_digest(task) for task in settings.tasks], [module_digest(FUNCTION, name) for name in own]
    benchmarks = [benchmark_fingerprint(one) for one in settings.benchmarks]
    return {"files": files, "functions": functions} | ({"benchmarks": benchmarks} if benchmarks else {})


def copy_files(settings: Evaluate, out_dir: Path) -> None:
    """Copy every task's file to `out_dir`/task_files/NAME.jsonl."""
    for task in settings.tasks:
        (out_dir / FILES).mkdir(exist_ok=True)
        shutil.copyfile(task_path(task), out_dir / FILES / f"{task.name}.jsonl")
    for benchmark in settings.benchmarks:
        if folder := folder_of(benchmark):
            shutil.copytree(folder, out_dir / FILES / benchmark.name)


def with_files_in(settings: Evaluate, folder: Path) -> Evaluate:
    """Return the settings with their tasks' files as `copy_files` left them in `folder`."""
    tasks = [task.model_copy(update={"file": (folder / f"{task.name}.jsonl").absolute()}) for task in settings.tasks]
    own = [
        one.model_copy(update={"folder": (folder / one.name).absolute()}) if one.folder else one for one in settings.benchmarks
    ]
    return settings.model_copy(update={"tasks": tasks, "benchmarks": own})


def task_items(settings: Evaluate) -> list[tuple[str, TaskItem]]:
    """The items of all tasks, each with its task's name."""
    return [(task.name, item) for task in settings.tasks for item in load_items(task)]


def find_contamination(
    settings: Evaluate, items: Sequence[tuple[str, TaskItem]], data: Path | None, trained: NDArray[np.int64]
) -> dict[str, list[TaskItem]]:
    """Return task -> items whose prompt is in the training data. data: the messages parquet; trained: its rows that were trained.

    Raises DataError where evaluate.contamination is refuse and there is one, or no data to look at.
    """
    if settings.contamination == "ignore" or not items:
        return {}
    if data is None:
        if settings.contamination == "refuse":
            raise DataError("evaluate.contamination is refuse, and no training data was given to look at; add --data.")
        return {}
    known = {item.id for item in contaminated([item for _, item in items], prompts_of(_conversations(data, trained)))}
    found: dict[str, list[TaskItem]] = {}
    for name, item in items:
        if item.id in known:
            found.setdefault(name, []).append(item)
    if found and settings.contamination == "refuse":
        name, first = next((name, listed[0]) for name, listed in found.items())
        raise DataError(
            f"task {name}, {first.id}: its prompt is in the training data ({sum(map(len, found.values()))} such items in all); "
            "take them out of the task or of the data, or set evaluate.contamination to warn."
        )
    return found


def _conversations(data: Path, trained: NDArray[np.int64]) -> Iterator[Any]:
    """Yield the messages of the rows that were trained, reading some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(data)
    wanted = np.zeros(file.metadata.num_rows, dtype=np.bool_)
    wanted[trained] = True
    start = 0
    for batch in file.iter_batches(4096, columns=["messages"]):
        yield from batch.column(0).filter(pa.array(wanted[start : start + len(batch)])).to_pylist()
        start += len(batch)
