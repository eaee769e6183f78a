"""Find the versions of a registered model, read and set their tags, and delete old ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from talaria.common.errors import DataError
from talaria.common.locks import locked
from talaria.registry.gate_record import with_entry
from talaria.runs.folder import short_id
from talaria.tracking.mlflow_client import connect, database_file, plain_errors
from talaria.tracking.tag_record import OF_A_VERSION, RECORD, packed, unpacked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
TRAINING = "talaria.training"
"""The short id of a training: the beginning of TRAIN_KEY, as everywhere."""
TRAIN_KEY, STEP, DIGEST, CANDIDATE = "talaria.train_key", "talaria.step", "talaria.sha256", "talaria.candidate"
LOSS, BASE_LOSS, HELDOUT = "talaria.eval_loss", "talaria.eval_base_loss", "talaria.heldout_digest"
TOKENS, MODEL_ID = "talaria.tokens", "talaria.model_id"
PREVIOUS = "talaria.previous_champion"
GATE, ROLLED_BACK, REJECTED = "talaria.gate", "talaria.rolled_back", "talaria.rejected"
"""What the gate and people said of it; each has further tags under it."""
_AT_A_TIME = 8


def search_versions(client: MlflowClient, model: str | None = None, condition: str = "") -> list[ModelVersion]:
    """Return the versions of a model (None: of all), newest first, that meet a condition on their tags.

    They carry no aliases: MLflow leaves them out.
    """
    filter_string = " AND ".join(filter(None, [f"name = '{model}'" if model else "", condition]))
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(filter_string, order_by=["version_number DESC"], max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def local_folder(location: str) -> Path | None:
    """Return the folder of a file:// address or plain path; None for files that only a server or an object store can reach."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if location and parts.scheme in ("", "file") else None


def location_of(client: MlflowClient, version: ModelVersion) -> str:
    """Return where a version's files are. `source` says that only of a version that registration made: MLflow's own copies
    (Promote model, copy_model_version) name the version that they are copies of."""
    source = version.source or ""
    if source.startswith("models:"):
        source = client.get_model_version_download_uri(version.name, str(version.version))
    if source.startswith("models:/m-"):
        source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    return str(source)


@contextlib.contextmanager
def files_of(client: MlflowClient, version: ModelVersion, uri: str) -> Iterator[Path | None]:
    """Yield the folder of a version's files: where it is, or downloaded for as long as the block lives. None where it is gone."""
    location = location_of(client, version)
    folder = local_folder(location)
    if folder is not None or not location or location.startswith("runs:"):
        yield folder if folder is not None and folder.is_dir() else None
        return
    with tempfile.TemporaryDirectory(prefix="talaria-model-") as scratch:
        yield Path(download(location, uri, scratch))


def download(location: str, uri: str, target: str | None = None) -> str:
    """Fetch files that only a server or an object store reaches; returns the folder that they are in."""
    import mlflow

    return str(mlflow.artifacts.download_artifacts(artifact_uri=location, tracking_uri=uri, dst_path=target))


def find_model(client: MlflowClient, model: str) -> dict[str, int]:
    """Return alias -> version of a registered model. Raises DataError if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DataError(f"{model}: MLflow has no registered model of this name; register one first.") from None
        raise
    return {alias: int(version) for alias, version in aliases.items()}


def get_version(client: MlflowClient, model: str, version: int) -> ModelVersion:
    """Return one version. Raises DataError if there is none of that number."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise DataError(f"{model}: has no version {version}.") from None
        raise


def tags_of(version: ModelVersion) -> dict[str, str]:
    """Return every talaria.* tag of a version under its own name (tracking/tag_record.py)."""
    return unpacked(version.tags)


def keys_of(version: ModelVersion) -> dict[str, str]:
    """Return stage -> key from a version's tags."""
    prefix = "talaria.key."
    return {name.removeprefix(prefix): value for name, value in tags_of(version).items() if name.startswith(prefix)}


def of_training(client: MlflowClient, model: str, key: str) -> list[ModelVersion]:
    """Return the versions of the training with this key, newest first."""
    short, whole = (
        f"tags.`{TRAINING}` = '{short_id(key)}'",
        f"tags.`{TRAIN_KEY}` = '{key}'",
    )  # the second: before RECORD was there
    found = search_versions(client, model, short) or search_versions(client, model, whole)
    return [version for version in found if tags_of(version).get(TRAIN_KEY) == key]


def now() -> str:
    """The time that is written on versions, in UTC to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def as_number(text: str | None) -> float | None:
    return None if text is None else float(json.loads(text))


def set_tags(client: MlflowClient, model: str, version: int | str, tags: Mapping[str, Any]) -> None:
    """Set a version's tags, except those whose value is None. MLflow takes one tag per call, so calls run in parallel."""
    new = {name: str(value) for name, value in tags.items() if value is not None}
    with contextlib.ExitStack() as stack:
        if any(name not in OF_A_VERSION for name in new):  # RECORD is rewritten with what it has
            known = stack.enter_context(alone(client, model, version))
            new = {name: value for name, value in _recorded(known).items() if name not in OF_A_VERSION} | new
        values = list(packed(new).items())
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(lambda tag: client.set_model_version_tag(model, str(version), *tag), values))


def drop_tags(client: MlflowClient, model: str, version: int | str, prefixes: tuple[str, ...]) -> None:
    """Remove the talaria.* tags whose names begin so."""
    with alone(client, model, version) as known:
        for name in [name for name in known.tags if name.startswith(prefixes)]:
            client.delete_model_version_tag(model, str(version), name)
        left = {name: value for name, value in _recorded(known).items() if not name.startswith(prefixes)}
        client.set_model_version_tag(model, str(version), RECORD, packed(left, ())[RECORD] if left else "{}")


def add_entry(client: MlflowClient, model: str, version: int | str, at: str, text: str) -> None:
    """Add a dated line to the history in a version's description."""
    with alone(client, model, version) as known:
        client.update_model_version(model, str(version), with_entry(known.description or "", at, text))


@contextlib.contextmanager
def alone(client: MlflowClient, model: str, version: int | str) -> Iterator[ModelVersion]:
    """Yield a version as it is now; until the block ends, nobody else rewrites what it says.

    MLflow has no lock and no compare-and-set, so the kernel's is used: beside MLflow's database where that is a file, else
    beside the version's files, where they are on a disk that this machine sees. Where neither is, the last writer wins.
    """
    number = str(version)
    beside = database_file(client.tracking_uri) or local_folder(location_of(client, client.get_model_version(model, number)))
    with contextlib.ExitStack() as stack:
        if beside is not None and os.access(beside.parent, os.W_OK):
            stack.enter_context(locked(beside.parent / f".{model}-{number}.lock"))
        yield client.get_model_version(model, number)


def _recorded(version: ModelVersion) -> dict[str, str]:
    """What RECORD of a version says."""
    return unpacked({RECORD: version.tags[RECORD]}) if RECORD in version.tags else {}


def prune(model: str, keep: int, *, uri: str) -> dict[str, Any]:
    """Delete all but the newest `keep` versions, with their files.

    A version with an alias stays, and the one that a rollback would go back to. Files stay for as long as a version of any
    model refers to them: a copy that MLflow made, or what was registered again after a model got another name.
    """
    if keep < 1:
        raise DataError(f"{model}: cannot keep {keep} versions; keep at least one.")
    client = connect(uri)
    with plain_errors(uri):
        aliases = find_model(client, model)
        versions = search_versions(client, model)
        numbers = {int(version.version): version for version in versions}
        kept = set(aliases.values()) | {int(version.version) for version in versions[:keep]}
        champion = numbers.get(aliases.get(CHAMPION, 0))
        if champion is not None and (previous := tags_of(champion).get(PREVIOUS)):
            kept.add(int(previous))
        removed = sorted(numbers.keys() - kept)
        _delete(client, [numbers[number] for number in removed])
    return {"model": model, "removed": removed, "kept": sorted(numbers.keys() & kept)}


def _delete(client: MlflowClient, versions: Sequence[ModelVersion]) -> None:
    """Delete versions first, so that none ever points at files that are gone, then the files that no version refers to."""
    located = {location_of(client, version): version for version in versions}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:  # MLflow deletes one version a call
        list(pool.map(lambda version: client.delete_model_version(version.name, str(version.version)), versions))
    if not located:
        return
    everywhere = search_versions(client)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:  # a call for each copy
        in_use = set(pool.map(lambda version: location_of(client, version), everywhere))
    in_use |= {tags_of(version).get(MODEL_ID, "") for version in everywhere}
    for location, version in located.items():
        model_id = tags_of(version).get(MODEL_ID)
        if location in in_use or model_id is None or model_id in in_use:
            continue
        client.delete_logged_model(model_id)
        folder = local_folder(location)
        if folder is not None and model_id in folder.parts:  # only a folder that registration made
            shutil.rmtree(folder, ignore_errors=True)
