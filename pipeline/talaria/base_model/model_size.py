"""How large a base model is, and what training makes of it: bytes of state, of a checkpoint, of an export. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from talaria.base_model.inspection import read_json, require_usable
from talaria.config.data_settings import Base
from talaria.config.train_settings import Train

STATE_BYTES = {"mixed": (6, 10), "fp32": (8, 8), "bf16": (4, 4)}
"""Precision -> bytes of a trained parameter on each rank, and bytes that all ranks share: weight, gradient, optimiser state."""
FROZEN_BYTES = {"mixed": 2, "fp32": 4, "bf16": 2}
CHECKPOINT_BYTES = {"mixed": 12, "fp32": 12, "bf16": 6}
"""Precision -> bytes of a trained parameter in a checkpoint: its weight or master, and Adam's two moments."""
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_VOCABULARY_ROWS = 128
_OTHER = 4  # bytes of a number whose dtype is not known: save_pretrained's own


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a base model, and the bytes of its weights as they are stored."""

    parameters: int
    stored_bytes: int

    def state_bytes(self, train: Train, ranks: int) -> float:
        """Return the least that each of `ranks` holds beside activations: all is sharded, adapters themselves not counted."""
        if train.lora.rank or train.trainable != ["*"] or train.freeze:
            return self.parameters * FROZEN_BYTES[train.precision] / ranks
        if train.offload == "optimizer":  # weights and gradients are whole on each of them
            return self.parameters * STATE_BYTES[train.precision][0]
        return self.parameters * sum(STATE_BYTES[train.precision]) / ranks

    def checkpoint_bytes(self, train: Train) -> int:
        """Return the size of a checkpoint; 0 where only part of the model is trained, of which too little is known here."""
        if train.lora.rank or train.trainable != ["*"] or train.freeze:
            return 0
        return self.parameters * CHECKPOINT_BYTES[train.precision]


def size_of_folder(folder: Path) -> ModelSize:
    """Read the weights' headers. Raises DataError where the folder is not one that can be trained from."""
    tensors = require_usable(folder).values()
    return _size((math.prod(tensor.shape), _ITEM_BYTES.get(tensor.dtype, _OTHER)) for tensor in tensors)


def size_on_hub(base: Base, config: Path) -> ModelSize | None:
    """Return the size by the lengths of the repository's files; `config`: its config.json. None where the hub does not say."""
    from talaria.common.hub import file_sizes

    sizes = file_sizes(base.repo, base.revision)
    stored = sum(size for name, size in sizes.items() if name.endswith(".safetensors") and "/" not in name)
    if not stored:
        return None
    settings = read_json(config)
    dtype = str(settings.get("dtype", settings.get("torch_dtype")))
    return ModelSize(stored // _ITEM_BYTES.get(dtype, _OTHER), stored)


def size_of_random(base: Base) -> ModelSize:
    """Count what base_model/random_init.py makes, with a whole vocabulary: float32, embeddings tied."""
    shape = base.shape
    queries, keys = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    rows = -(-base.vocab_size // _VOCABULARY_ROWS) * _VOCABULARY_ROWS
    layer = shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size + 2) + 2 * shape.head_dim
    return _size([(rows * shape.hidden_size + shape.num_hidden_layers * layer + shape.hidden_size, 4)])


def _size(tensors: Iterable[tuple[int, int]]) -> ModelSize:
    counted = list(tensors)
    return ModelSize(sum(count for count, _ in counted), sum(count * item for count, item in counted))
