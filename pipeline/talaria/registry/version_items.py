"""The results per item of a version: files of its MLflow run, named by tags of the version."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.files import file_digest
from talaria.evaluation.items import FOLDER as ITEMS_FOLDER
from talaria.evaluation.items import Items
from talaria.evaluation.stage import REPORT
from talaria.evaluation.tasks.checks import FILES
from talaria.registry.versions import set_tags, tags_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "evaluation/items"
"""Of a run's files; each evaluation has a folder of its own in it, with its settings and task files."""
ITEMS, BASE_ITEMS = "talaria.items", "talaria.base_items"
"""Tags: where in the run's files a version's own results are, and its base model's."""
MEASURED = "talaria.items_on."
"""Tag, with a held-out digest behind it: where results are that were measured later."""


def log_evaluation(client: MlflowClient, run_id: str, evaluation: Path) -> None:
    """Log what another model needs to be measured likewise: results per item, report, and the tasks' files."""
    if not (evaluation / ITEMS_FOLDER).is_dir():
        return
    folder = evaluation_folder(evaluation)
    client.log_artifacts(run_id, str(evaluation / ITEMS_FOLDER), folder)
    client.log_artifact(run_id, str(evaluation / REPORT), folder)
    if (evaluation / FILES).is_dir():
        client.log_artifacts(run_id, str(evaluation / FILES), f"{folder}/{FILES}")


def evaluation_folder(evaluation: Path) -> str:
    """Return where in a run's files an evaluation's results are: a training may be evaluated several times."""
    return f"{FOLDER}/{file_digest(evaluation / REPORT)[:16]}"


def items_path(evaluation: Path, name: str) -> str | None:
    """Return the path of a model's results in the run's files, if the evaluation has any."""
    file = f"{name}.parquet"
    return f"{evaluation_folder(evaluation)}/{file}" if (evaluation / ITEMS_FOLDER / file).is_file() else None


def read_items(client: MlflowClient, version: ModelVersion, tag: str) -> Items | None:
    """Return the results that a version's tag names; None where it names none, or the run's file is gone."""
    from mlflow.exceptions import MlflowException

    path = tags_of(version).get(tag)
    if path is None or not version.run_id:
        return None
    with tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
        try:
            return Items.read(Path(client.download_artifacts(version.run_id, path, scratch)))
        except (MlflowException, OSError):
            return None


def keep_items(client: MlflowClient, version: ModelVersion, tag: str, items: Items, name: str) -> None:
    """Log results measured later as a file of the version's run, and name it in a tag."""
    if not version.run_id:
        return
    with tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
        items.write(Path(scratch) / name)
        client.log_artifact(version.run_id, str(Path(scratch) / name), FOLDER)
    set_tags(client, version.name, version.version, {tag: f"{FOLDER}/{name}"})
