"""The lineage of a model, read from the manifests of the store, as MLflow tags, params and data set inputs."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.files import digest
from talaria.common.redact import scrub
from talaria.config.schema import Config
from talaria.runs.folder import short_id
from talaria.stages.table import STAGES, inputs_of, key_of
from talaria.store.manifest import Manifests

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

USER = "TALARIA_USER"
"""Variable: who asked for what this process does, where that is not the user that it runs as."""
ORIGIN = ("talaria.dag_id", "talaria.run_id", "talaria.git_commit")
"""Tags that identify the Airflow run and the code, not the data."""
_MAX_PARAM = 6000  # MLflow's longest param
_MAX_DIGEST = 36  # and data set digest


def train_key(config: Config, known: Manifests) -> str | None:
    """Return the key of the training output, from its manifest or (during training) as it will be. None outside a store."""
    if "train" in known:
        return str(known["train"]["key"])
    stage = STAGES["train"]
    if not all(name in known for name in inputs_of(stage, config)):
        return None
    return key_of(stage, config, {name: known[name]["key"] for name in inputs_of(stage, config)})[0]


def data_digest(known: Manifests) -> str | None:
    """Return a digest over the source files' digests, or over the earliest known stage if the source is unknown."""
    for stage in ("download", "convert", "tokenize"):
        if stage in known:
            return digest({name: file["sha256"] for name, file in sorted(known[stage]["files"].items())})
    return None


def run_tags(config: Config, known: Manifests, context: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the talaria.* tags of a run and its versions."""
    keys = {f"talaria.key.{stage}": manifest["key"] for stage, manifest in sorted(known.items())}
    values = {
        "talaria.config": config.name,
        "talaria.training": short_id(key) if (key := train_key(config, known)) else None,
        "talaria.train_key": key,
        "talaria.data.source": "mixture" if config.sources else config.download.source,
        "talaria.data.name": config.data_origin,
        "talaria.data.revision": _data_revision(config, known),
        "talaria.data.digest": data_digest(known),
        "talaria.base": config.base.origin,
        "talaria.base.revision": _commit(known, "base") if config.base.source == "hub" else None,
        "talaria.git_commit": git_commit(),
        **airflow_context(),
        **{f"talaria.{name}": value for name, value in (context or {}).items()},
    }
    return keys | {name: scrub(str(value)) for name, value in values.items() if value}


def run_params(config: Config) -> dict[str, str]:
    """Return every setting under its dotted name, as MLflow params."""
    return {name: scrub(str(value))[:_MAX_PARAM] for name, value in config.flat().items()}


def dataset_inputs(config: Config, known: Manifests, tokens: str | Path) -> list[DatasetInput]:
    """Return the training data and the held-out split as MLflow data set inputs: source and digest, no data is loaded."""
    from talaria.tokenization.dataset import _shards_digest, heldout_digest  # here: pyarrow is not for DAG files

    training = data_digest(known) or _shards_digest(Path(tokens) / "train") or _shards_digest(Path(tokens))
    heldout = heldout_digest(tokens)
    inputs = []
    if training:
        inputs.append(_dataset(config, known, config.data_origin, training, "training"))
    if heldout:
        inputs.append(_dataset(config, known, heldout_name(config), heldout, "heldout"))
    return inputs


def heldout_name(config: Config) -> str:
    return f"{scrub(config.data_origin)} (held out)"


def short_digest(value: str) -> str:
    return value[: _MAX_DIGEST - 4]


def _dataset(config: Config, known: Manifests, name: str, value: str, context: str) -> DatasetInput:
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    described = MetaDataset(_source(config, known), name=scrub(name), digest=short_digest(value)).to_dict()  # type: ignore[abstract]
    facts = {"tokenize": known["tokenize"]["facts"]} if "tokenize" in known else {}
    dataset = Dataset(
        name=described["name"],
        digest=described["digest"],
        source_type=described["source_type"],
        source=scrub(described["source"]),
        profile=json.dumps(facts) if facts else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _source(config: Config, known: Manifests) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # MLflow makes it at import

    if config.sources:
        return CodeDatasetSource({name: scrub(source.download.origin) for name, source in config.sources.items()})
    download = config.download
    if download.source == "hub":
        return HuggingFaceDatasetSource(path=download.repo, revision=_data_revision(config, known), data_files=download.files)
    if download.source == "local":
        return LocalArtifactDatasetSource(str(download.path))  # MLflow's resolve_dataset_source finds it twice, and warns
    settings = {name: str(getattr(download, name)) for name in ("rows", "tool_rows", "seed")}
    return CodeDatasetSource({"generator": "talaria sample"} | settings)


def _data_revision(config: Config, known: Manifests) -> str | None:
    if config.sources:
        outside = known.get("download", {}).get("outside") or {}
        pins = {name: outside.get(name) or {} for name in config.sources}
        return ", ".join(f"{name} {pin['commit']}" for name, pin in pins.items() if "commit" in pin) or None
    return (_commit(known, "download") or config.download.revision) if config.download.source == "hub" else None


def _commit(known: Manifests, stage: str) -> str | None:
    """Return the commit that a stage's source resolved to."""
    outside = known.get(stage, {}).get("outside")
    return outside.get("commit") if isinstance(outside, dict) else None


def airflow_context() -> dict[str, str]:
    """Return the Airflow run of this process, from the variables that Airflow sets for its tasks."""
    names = {"talaria.dag_id": "AIRFLOW_CTX_DAG_ID", "talaria.run_id": "AIRFLOW_CTX_DAG_RUN_ID"}
    return {tag: os.environ[name] for tag, name in names.items() if name in os.environ}


def source_tags() -> dict[str, str]:
    """Return the tags of a new run from which MLflow's pages fill "Created by" and "Source"."""
    context = airflow_context()
    try:
        user = os.environ.get(USER) or os.environ.get("AIRFLOW_CTX_DAG_OWNER") or getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": f"Airflow: {context['talaria.dag_id']}" if "talaria.dag_id" in context else "talaria",
        "mlflow.source.type": "JOB" if context else "LOCAL",
    }
    return tags | ({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {})


def git_commit() -> str | None:
    """Return the commit of this code, with '-dirty' if files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return os.environ.get("TALARIA_GIT_COMMIT")
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository of another user: lineage lacks one tag
        return os.environ.get("TALARIA_GIT_COMMIT")
