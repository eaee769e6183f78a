"""Whether tokens and a base model belong together: checked before anything is started, not when the model is exported."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.base_model.hf_folder import write_small_files
from talaria.base_model.inspection import read_json
from talaria.common.errors import DataError


def tokenizer_of(tokens: Path, base: Path) -> Path:
    """Return the folder of the tokens' own tokenizer, or the base model's for a data set that came without one."""
    own = tokens / "tokenizer"
    return own if own.is_dir() else base


def require_tokenizer_fits(tokenizer: Path, base: Path) -> None:
    """Raise DataError unless the tokens' tokenizer is the base model's and all that an export needs of both is there.

    The export's small files are made here once, into a folder that is thrown away: what fails now would fail after the last step.
    """
    if tokenizer != base and (tokenizer / "tokenizer.json").is_file() and (base / "tokenizer.json").is_file():
        _require_same_tokens(tokenizer / "tokenizer.json", base / "tokenizer.json")
    scratch = Path(tempfile.mkdtemp(prefix="talaria-export-"))
    try:
        write_small_files(tokenizer, base, scratch)
    except DataError as error:
        raise DataError(_by_source(str(error), scratch, tokenizer, base)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _by_source(sentence: str, scratch: Path, tokenizer: Path, base: Path) -> str:
    """Return the sentence with its files where the user has them: settings are the model's, the rest the tokenizer's.

    /tmp/talaria-export-x/generation_config.json becomes MODEL/generation_config.json, the folder alone becomes MODEL.
    """
    for name in ("config.json", "generation_config.json"):
        sentence = sentence.replace(f"{scratch}/{name}", f"{base}/{name}")
    return sentence.replace(f"{scratch}/", f"{tokenizer}/").replace(f"{scratch}", f"{base}")


def _require_same_tokens(one: Path, other: Path) -> None:
    """Compare vocabulary, merges and added tokens; the chat template is the tokens' own, since they were made with it."""
    if one.read_bytes() == other.read_bytes():
        return
    ours, theirs = (_token_rules(read_json(path)) for path in (one, other))
    for part, mine in ours.items():
        if mine != theirs[part]:
            raise DataError(
                f"{one.parent}: the tokens were made with another tokenizer than {other.parent} has (their {part} differ); "
                "tokenise again with this model's tokenizer, or choose the model that belongs to it."
            )


def _token_rules(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which text has which id, in one form for files of different ages."""
    model = tokenizer.get("model", {})
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens", []))
    return {"vocabularies": model.get("vocab"), "merges": merges, "added tokens": added}
