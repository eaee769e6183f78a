"""A Hugging Face model folder: which of its files are taken, what its headers say, and that it stops where ChatML ends."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.files import file_digest, link_or_copy
from talaria.tokenization import chatml as chat
from talaria.tokenization import tokenizer as tokenizers

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Weights as safetensors only: a pickle can run code on whoever loads it."""


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
