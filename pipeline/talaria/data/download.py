"""The download stage: the source files as they came, from the hub, a local path or the bundled generator, into `data/`.

Every file's sha256 is computed, compared with what the hub or the configuration says, and recorded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.files import file_digest
from talaria.common.output_folder import replacing
from talaria.config.data_settings import Download
from talaria.config.schema import Config
from talaria.data.source_files import find_files

Facts = dict[str, Any]


def fingerprint(config: Config) -> Any:
    """What outside the store decides the output: the commit that the revision stands for, or the digests of local files."""
    if config.sources:
        return {name: pin(source.download) for name, source in config.sources.items()}
    return pin(config.download)


def pin(settings: Download) -> Any:
    """What a source is now, wherever it comes from."""
    if settings.source == "hub":
        from talaria.common.hub import commit_of

        return {"commit": commit_of(settings.repo, settings.revision, "dataset")}
    if settings.source == "local":
        return {"files": {name: file_digest(path) for name, path in local_files(settings)}}
    return None


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    if not config.sources:
        return fill(config.download, out_dir, out_dir / "data")
    found = {name: fill(source.download, out_dir, out_dir / "data" / name) for name, source in config.sources.items()}
    files = {f"{name}/{file}": about for name, facts in found.items() for file, about in facts["files"].items()}
    return {"source": "mixture", "sources": found, "files": files, "bytes": sum(facts["bytes"] for facts in found.values())}


def download(config: Config, output: Path) -> Facts:
    """The stage on an explicit path: the whole folder appears at `output`, or nothing.

    Raises UserError, one sentence that says what to do, where the source cannot be had or is not what it should be.
    """
    with replacing(output, made_by="download") as work:
        facts = run(config, {}, work.path)
        work.describe({"settings": {"download": config.key_fields_of("download")}, "facts": facts})
    return facts


def fill(config: Download, out_dir: Path, data: Path) -> Facts:
    """Put one source's files into `data`, a folder in the output `out_dir`."""
    data.mkdir(parents=True, exist_ok=True)
    origin: Facts = {"source": config.source}
    if config.source == "hub":
        from talaria.data.hub_download import fetch

        origin |= {"repo": config.repo, "revision": config.revision, "commit": fetch(config, data, out_dir)}
    elif config.source == "local":
        copy(config, data)
        origin |= {"path": str(config.path)}
    else:
        from talaria.data.synthetic.generator import FILE, write_sample

        write_sample(data / FILE, config.rows, config.seed, config.tool_rows)
        origin |= {"rows": config.rows, "tool_rows": config.tool_rows, "seed": config.seed}
    found = find_files(data, all_splits=True)  # refuses what convert could not read
    files = {str(file.path.relative_to(data)): describe(file.path) for file in found}
    check(config, files)
    return origin | {"files": files, "bytes": sum(file["bytes"] for file in files.values())}


def local_files(config: Download) -> list[tuple[str, Path]]:
    """(name in data/, path) of the files that `download.path` and `download.files` name."""
    assert config.path is not None, "the configuration asks for it"
    root = config.path
    files = [file.path for file in find_files(root, config.files)]
    return [(path.name if root.is_file() else str(path.relative_to(root)), path) for path in files]


def copy(config: Download, data: Path) -> None:
    for name, path in local_files(config):
        target = data / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def describe(path: Path) -> Facts:
    return {"bytes": os.path.getsize(path), "sha256": file_digest(path)}


def check(config: Download, files: Mapping[str, Facts]) -> None:
    """Compare with `download.sha256`."""
    if config.sha256 is None:
        return
    if len(files) != 1:
        raise DataError(
            f"download.sha256 is for one file, found {len(files)}: {', '.join(files)}; choose one with download.files."
        )
    name, facts = next(iter(files.items()))
    if facts["sha256"] != config.sha256.lower():
        raise DataError(
            f"{name}: its sha256 is {facts['sha256']}, download.sha256 says {config.sha256}; "
            "the file is damaged or another version: get it again, or correct the setting."
        )
