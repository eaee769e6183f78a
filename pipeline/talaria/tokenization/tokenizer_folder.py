"""A tokenizer folder: find it, choose the chat template that is trained, save it so that it loads as what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
TEMPLATE_FILE = "chat_template.jinja"
ORIGINAL_TEMPLATE_FILE = "chat_template.original.jinja"
ALL_FILES = (*FILES, TEMPLATE_FILE, ORIGINAL_TEMPLATE_FILE)

_BPE_FLAGS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
CHATML, OWN = "chatml", "own"
AS_IT_IS = "PreTrainedTokenizerFast"
"""The tokenizer_class that transformers loads from tokenizer.json alone."""
_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def find(name: str | Path) -> Path:
    """A folder as it is, or the tokenizer files of a model on the Hugging Face hub, from its cache where they are there.

    Raises DataError with what to do.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"{name}: no such tokenizer folder; give a folder with tokenizer.json or a hub name like Qwen/Qwen3-4B-Base."
        )
    from talaria.common.hub import snapshot

    return snapshot(name, "main", [*FILES, TEMPLATE_FILE])[0]


def template_of(folder: Path) -> str | None:
    """The chat template that transformers uses with this folder, None where it has none.

    Raises DataError where there are several under names: which one counts then depends on the caller.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    found = _settings(folder).get("chat_template")
    return None if found is None else _one_template(folder, found)


def own_template(folder: Path) -> str | None:
    """The template that the tokenizer came with, also where this folder is one of ours, which have it beside theirs."""
    kept = folder / ORIGINAL_TEMPLATE_FILE
    if not kept.is_file():
        return template_of(folder)
    text = kept.read_text(encoding="utf-8")
    try:
        found = json.loads(text)  # several under names, as `save` keeps them
    except ValueError:
        found = text
    return _one_template(folder, found)


def _one_template(folder: Path, found: Any) -> str:
    if not isinstance(found, str):
        raise DataError(f"{folder}: has several chat templates; save the one to train as a file for tokenize.template.")
    return found


def template_source(setting: str, folder: Path) -> str:
    """The template that `tokenize.template` names, other than ChatML. Raises DataError where it is not there."""
    if setting == OWN:
        source = own_template(folder)
        if not source:
            raise DataError(f"{folder}: has no chat template of its own; set tokenize.template to chatml or to a file.")
        return source
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenize.template: {setting} cannot be read ({error}); give chatml, own or a file of Jinja.") from None


def save(folder: Path, out_dir: Path, template: str | None) -> None:
    """Copy the tokenizer's files with `template` as the chat template, and one of its own that is another beside it.

    Templates differ in what they do to the text: Qwen3's puts an empty think block on the last answer only and cuts content at
    </think>, so that what is trained is not what is served. The saved template is the one the ids were made with.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    settings = _settings(folder)
    original = settings.pop("chat_template", None)
    for name in (TEMPLATE_FILE, ORIGINAL_TEMPLATE_FILE):  # the second: the folder is one of ours, its template already another
        original = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else original
    for name in FILES:
        if (folder / name).is_file() and folder != out_dir:
            shutil.copyfile(folder / name, out_dir / name)
    _clear_cuts(out_dir / "tokenizer.json")
    if not _rebuilds_the_same(settings.get("tokenizer_class"), folder / "tokenizer.json"):
        settings["tokenizer_class"] = AS_IT_IS
    _write(out_dir / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    if template is not None:
        _write(out_dir / TEMPLATE_FILE, template)
    if original and original != template:
        text = original if isinstance(original, str) else json.dumps(original, indent=2, ensure_ascii=False)
        _write(out_dir / ORIGINAL_TEMPLATE_FILE, text)


def _clear_cuts(file: Path) -> None:
    """Remove truncation and padding, which transformers leaves there at its last call: engines cut each text by them."""
    found = before_vocabulary(file)
    if found is None or not (found.get("truncation") or found.get("padding")):
        return
    content = json.loads(file.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
    _write(file, json.dumps(content, indent=2, ensure_ascii=False))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {"tokenizer_class": AS_IT_IS}
    if path.is_file():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}).") from None
    return settings


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _rebuilds_the_same(name: Any, file: Path) -> bool:
    """Whether transformers' class of this name gives the tokenizer of tokenizer.json.

    From version 5 on its classes take vocabulary and merges from the file and build the rest themselves: digits are then split as
    the class has it, not as the model was trained. Only Qwen2's class, which is Qwen3's too, is known here to give the same.
    """
    if name in (AS_IT_IS, "TokenizersBackend"):
        return True
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast") or not file.is_file():
        return False
    found = before_vocabulary(file)
    if found is None:  # not known to be the same
        return False
    steps = (found.get("pre_tokenizer") or {}).get("pretokenizers", [])
    return (
        found.get("normalizer") == {"type": "NFC"}
        and [step["type"] for step in steps] == ["Split", "ByteLevel"]
        and steps[0]["pattern"] == {"Regex": _QWEN2_SPLIT}
        and not steps[1]["add_prefix_space"]
        and not any(found["model"].get(flag) for flag in _BPE_FLAGS)
    )


def before_vocabulary(file: Path) -> dict[str, Any] | None:
    """What tokenizer.json says before its vocabulary; None where there is no such file, or it is not in the library's order."""
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        found: dict[str, Any] = json.loads(text[: text.index('"vocab"')].rstrip().rstrip(",") + "}}")
    except ValueError:
        return None
    return found
