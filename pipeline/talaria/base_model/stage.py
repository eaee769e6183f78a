"""The base stage: a Hugging Face model folder to start from, of the hub, of a local folder, or made from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from talaria.base_model.families import require_trainable
from talaria.base_model.hf_folder import PATTERNS, copy_model, describe, model_files, save_tokenizer
from talaria.base_model.inspection import read_json, require_usable
from talaria.common.errors import DataError
from talaria.common.files import file_digest
from talaria.config.data_settings import Base
from talaria.config.schema import Config
from talaria.data.messages_parquet import MESSAGES
from talaria.tokenization import chatml as chat
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tokenization.tokenizer_folder import ALL_FILES


def fingerprint(config: Config) -> Any:
    """What pins the model that comes from outside the store: a commit, or digests of the files."""
    base = config.base
    if base.source == "hub":
        from talaria.common.hub import commit_of

        return {"commit": commit_of(base.repo, base.revision)}
    folder = base.path if base.source == "local" else base.tokenizer
    if folder is None:
        from talaria.base_model.random_init import OWN_TEMPLATE

        return {"template": file_digest(OWN_TEMPLATE)}
    files = {name: path for name, path in model_files(folder) if base.source == "local" or name in ALL_FILES}
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(files, pool.map(file_digest, files.values()), strict=True))


def require_trainable_base(config: Config) -> None:
    """Raise DataError for a base model that cannot be trained, from its config.json: before anything else is fetched or made."""
    base = config.base
    if base.source == "hub":
        from talaria.common.hub import snapshot

        folder, _ = snapshot(base.repo, base.revision, ["config.json"])
        require_trainable(read_json(folder / "config.json"), base.repo)
    elif base.source == "local":
        assert base.path is not None  # the configuration has checked it
        if not base.path.is_dir():
            raise DataError(f"{base.path}: no such folder; base.path names the folder of a model.")
        require_usable(base.path)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Fill `out_dir`. `inputs` has `convert` where a tokenizer is to be trained on its messages."""
    base = config.base
    facts: dict[str, Any] = {"source": base.source}
    if base.source == "random":
        make_random(base, inputs, out_dir)
    elif base.source == "hub":
        from talaria.common.hub import snapshot

        folder, commit = snapshot(base.repo, base.revision, PATTERNS)
        facts |= {"repo": base.repo, "commit": commit}
        copy_model(folder, out_dir)
    else:
        assert base.path is not None  # the configuration has checked it
        facts["path"] = str(base.path.absolute())
        copy_model(base.path, out_dir)
    return facts | describe(out_dir)


def make_random(base: Base, inputs: Mapping[str, Path], out_dir: Path) -> None:
    from talaria.base_model import random_init

    if base.tokenizer is None:
        random_init.train_tokenizer(inputs["convert"] / MESSAGES, base.vocab_size, out_dir)
    save_tokenizer(base.tokenizer or out_dir, out_dir)
    tokenizer = open_hugging_face(out_dir / "tokenizer.json")
    end_of_text = tokenizer.token_to_id(chat.END_OF_TEXT)
    if end_of_text is None:
        raise DataError(
            f"{base.tokenizer}: has no {chat.END_OF_TEXT}, which ends a text for a Qwen3 model; use a Qwen tokenizer."
        )
    random_init.write_model(out_dir, base.shape, tokenizer.get_vocab_size(), end_of_text, base.seed)
