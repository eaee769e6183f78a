"""The base stage: a Hugging Face model folder to start from, of the hub, of a local folder, or made from random weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.config import Base, Config
from pipeline.errors import DataError
from pipeline.store import file_digest, link_or_copy
from pipeline.tokens import chat
from pipeline.tokens import tokenizer as tokenizers

MESSAGES = "messages.parquet"
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Weights as safetensors only: a pickle can run code on whoever loads it."""


def fingerprint(config: Config) -> Any:
    """What pins the model that comes from outside the store: a commit, or digests of the files."""
    base = config.base
    if base.source == "hub":
        from pipeline.hub import commit_of

        return {"commit": commit_of(base.repo, base.revision)}
    folder = base.path if base.source == "local" else base.tokenizer
    if folder is None:
        return None
    files = {name: path for name, path in model_files(folder) if base.source == "local" or name in tokenizers.ALL_FILES}
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return dict(zip(files, pool.map(file_digest, files.values()), strict=True))


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Fill `out_dir`. `inputs` has `convert` where a tokenizer is to be trained on its messages."""
    base = config.base
    facts: dict[str, Any] = {"source": base.source}
    if base.source == "random":
        make_random(base, inputs, out_dir)
    elif base.source == "hub":
        from pipeline.hub import snapshot

        folder, commit = snapshot(base.repo, base.revision, PATTERNS)
        facts |= {"repo": base.repo, "commit": commit}
        copy_model(folder, out_dir)
    else:
        assert base.path is not None  # the configuration has checked it
        facts["path"] = str(base.path.absolute())
        copy_model(base.path, out_dir)
    return facts | describe(out_dir)


def make_random(base: Base, inputs: Mapping[str, Path], out_dir: Path) -> None:
    from pipeline import scratch

    if base.tokenizer is None:
        scratch.train_tokenizer(inputs["convert"] / MESSAGES, base.vocab_size, out_dir)
    tokenizers.save(base.tokenizer or out_dir, out_dir)
    tokenizer = tokenizers.open_hugging_face(out_dir / "tokenizer.json")
    end_of_text = tokenizer.token_to_id(chat.END_OF_TEXT)
    if end_of_text is None:
        raise DataError(
            f"{base.tokenizer}: has no {chat.END_OF_TEXT}, which ends a text for a Qwen3 model; use a Qwen tokenizer."
        )
    scratch.write_model(out_dir, base.shape, tokenizer.get_vocab_size(), end_of_text, base.seed)


def model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a model or tokenizer folder that the stage takes. Raises DataError where there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; base.path and base.tokenizer name a folder of a model or tokenizer.")
    for path in sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}):
        yield path.name, path


def copy_model(folder: Path, out_dir: Path) -> None:
    """config.json and safetensors as hard links where that works, the tokenizer with a ChatML template."""
    files = dict(model_files(folder))
    if "config.json" not in files:
        raise DataError(f"{folder}: not a model folder (no config.json).")
    if not any(name.endswith(".safetensors") for name in files):
        raise DataError(f"{folder}: has no *.safetensors; save the model with save_pretrained, which writes them.")
    for name, path in files.items():
        if name.endswith((".safetensors", ".safetensors.index.json")):
            link_or_copy(path.resolve(), out_dir / name)  # the hub's cache holds symbolic links
        elif name in ("config.json", "generation_config.json"):
            shutil.copyfile(path, out_dir / name)
    tokenizers.save(folder, out_dir)


def describe(folder: Path) -> dict[str, Any]:
    """Check that model and tokenizer fit, make generation stop on <|im_end|>, and say what the folder holds.

    A base model's own generation_config ends at <|endoftext|> only, so that a tuned one would never stop.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.open_hugging_face(folder / "tokenizer.json")
    end = tokenizers.control_id(tokenizer, chat.END, folder / "tokenizer.json")
    tokenizers.control_id(tokenizer, chat.START, folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens but the model embeds {config['vocab_size']}; "
            "they do not belong together."
        )
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    end_of_text = tokenizer.token_to_id(chat.END_OF_TEXT)
    own = config.get("eos_token_id") if end_of_text is None else end_of_text
    others = own if isinstance(own, list) else [own]
    generation["eos_token_id"] = [end, *(id for id in others if id not in (None, end))]
    if end_of_text is not None:
        generation["pad_token_id"] = end_of_text
    path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return {
        "model_type": config["model_type"],
        "parameters": sum(count for _, count in parameters(folder)),
        "vocab_size": config["vocab_size"],
        "tokens": tokenizer.get_vocab_size(),
        "tokenizer": file_digest(folder / "tokenizer.json"),
        "eos_token_id": generation["eos_token_id"],
    }


def parameters(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and number of elements of each tensor, from the safetensors headers."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, math.prod(tensor["shape"])
