"""Checks of a model folder before anything is started: of its config.json and its weights' headers. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.base_model.families import require_trainable
from talaria.common.errors import DataError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_WHOLE = ("BOOL", "I64", "I32", "U64", "U32", "I16", "U16")
"""Of buffers, positions for example; 8-bit tensors are quantised weights."""
_SHOWN = 3
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def require_usable(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by name. Raises DataError, one sentence, where it cannot be trained from."""
    config = read_json(folder / "config.json")
    require_trainable(config, str(folder))
    tensors = stored_tensors(folder)
    for name, tensor in tensors.items():
        if tensor.dtype not in (*_FLOATS, *_WHOLE):
            raise DataError(
                f"{folder}: {name} is stored as {tensor.dtype}; dequantise the model and save it with its config.json."
            )
    table = next((tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if table and table.shape and table.shape[0] != config.get("vocab_size", table.shape[0]):
        raise DataError(
            f"{folder}: config.json gives vocab_size {config['vocab_size']}, but the embedding has {table.shape[0]} rows; "
            "they do not belong together."
        )
    return tensors


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of a model's safetensors files. Raises DataError for files that are missing, cut off or no safetensors."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        found |= read_header(path)
    if (folder / INDEX).is_file():
        absent = sorted(set(_weight_map(folder)) - found.keys())
        if absent:
            raise DataError(f"{folder}: {INDEX} lists {listed(absent)}, which no file holds; fetch the model again.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up a model. Raises DataError where there is none or one is missing."""
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{folder}: {listed(missing)} of its weights is missing; fetch the model again.")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise DataError(
            f"{folder}: its weights are pickled, which can run code on whoever loads them; save the model with save_pretrained, "
            "which writes safetensors."
        )
    raise DataError(f"{folder}: has no weights ({WEIGHTS}); fetch the model again, or save it with save_pretrained.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object. Raises DataError where the file is missing, empty, cut off or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a model folder needs it.") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); fetch it again.") from None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: holds no settings; fetch it again.")
    return value


def listed(names: list[str]) -> str:
    """Name the first few, and say how many there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _weight_map(folder: Path) -> dict[str, str]:
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) and "/" not in name for name in found.values()):
        raise DataError(f"{folder / INDEX}: has no weight_map of names in this folder; fetch it again.")
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read what a safetensors file holds. Raises DataError where it is cut off or none."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size, _LARGEST_HEADER):
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        return dict(_entries(header, size - 8 - length))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no whole safetensors file ({error}); fetch it again.") from None


def _entries(header: dict[str, Any], data: int) -> Iterator[tuple[str, StoredTensor]]:
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if tensor["data_offsets"][1] > data:
            raise ValueError(f"it ends within {name}")
        yield name, StoredTensor(tensor["dtype"], tuple(tensor["shape"]))
