"""What the trainer uses of transformers beyond its public interface: here and nowhere else.

Public transformers loads and saves whole models only. tests/train/test_internals.py says whether these are still there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.core_model_loading import revert_weight_conversion


def in_files(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a parameter as the model's files hold it: experts that are one tensor in memory are many there."""
    files: dict[str, Tensor] = revert_weight_conversion(model, {name: tensor})
    return files


def names_in_files(model: Any, name: str, param: nn.Parameter) -> list[str]:
    """Return the names under which the model's files hold a parameter."""
    return list(in_files(model, name, torch.empty(param.shape, device="meta")))


def recompute(layer: nn.Module, recomputed: bool) -> None:
    """Say whether a decoder layer's next backward pass computes its activations anew instead of having saved them."""
    layer.gradient_checkpointing = recomputed  # type: ignore[assignment]
    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
