"""A Hugging Face model folder: its files, its tokenizer with a chat template, the tokens that end an answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talaria.base_model.inspection import INDEX, read_header, read_json, require_usable, weight_files
from talaria.common.errors import DataError
from talaria.common.files import file_digest, link_or_copy
from talaria.tokenization import chatml as chat
from talaria.tokenization.loading import Loading
from talaria.tokenization.rendered.probe import answer_ends
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tokenization.tokenizer_folder import own_template, save, template_of

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Weights as safetensors only: a pickle can run code on whoever loads it."""
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p")
"""Settings of generation_config.json that ask for answers drawn at random, or forbid it."""


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
    require_usable(folder)
    for path in weight_files(folder):
        link_or_copy(path.resolve(), out_dir / path.name)  # the hub's cache holds symbolic links
    for name in (INDEX, "config.json", "generation_config.json"):
        if name in files:
            shutil.copyfile(files[name], out_dir / name)
    save_tokenizer(folder, out_dir)


def save_tokenizer(folder: Path, out_dir: Path) -> None:
    """The tokenizer with plain ChatML as its template, or with its own where it knows no ChatML.

    Raises DataError where it knows no ChatML and has no template.
    """
    loading = Loading(folder, "tokenizers")
    added = {token.content for token in loading.hugging_face.get_added_tokens_decoder().values() if token.special}
    own = None if {chat.START, chat.END} <= added else own_template(folder)
    save(folder, out_dir, own or chat.template(loading.oracle.bos_text))


def write_small_files(tokenizer: Path, base: Path, out_dir: Path) -> dict[str, Any]:
    """Write all of a model folder but its weights and card: the base's settings and the tokenizer that the tokens were made with.

    Returns what `describe` does. Raises DataError where a file is missing, unreadable or does not fit the others.
    """
    for name in ("config.json", "generation_config.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, out_dir / name)
    save(tokenizer, out_dir, template_of(tokenizer))
    return describe(out_dir)


def describe(folder: Path) -> dict[str, Any]:
    """Check that model and tokenizer fit, make generation stop where an answer ends, and say what the folder holds.

    A base model's own generation_config ends at <|endoftext|> only, so that a tuned one would never stop. Where it says nothing
    of sampling, greedy is written down: `generate` takes that for granted, and a pipeline of transformers, MLflow's too, draws.
    """
    config = read_json(folder / "config.json")
    tokenizer = open_hugging_face(folder / "tokenizer.json")
    ends = [id for id in map(tokenizer.token_to_id, answer_ends(folder, tokenizer)) if id is not None]
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens but the model embeds {config['vocab_size']}; "
            "they do not belong together."
        )
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    end_of_text = tokenizer.token_to_id(chat.END_OF_TEXT)
    own = config.get("eos_token_id") if end_of_text is None else end_of_text
    others = own if isinstance(own, list) else [own]
    generation["eos_token_id"] = [*ends, *(id for id in others if id is not None and id not in ends)]
    if end_of_text is not None:
        generation["pad_token_id"] = end_of_text
    if all(generation.get(name) is None for name in _SAMPLING):
        generation["do_sample"] = False
    path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return {
        "model_type": config["model_type"],
        "parameters": sum(
            math.prod(tensor.shape) for path in folder.glob("*.safetensors") for tensor in read_header(path).values()
        ),
        "vocab_size": config["vocab_size"],
        "tokens": tokenizer.get_vocab_size(),
        "tokenizer": file_digest(folder / "tokenizer.json"),
        "eos_token_id": generation["eos_token_id"],
    }
