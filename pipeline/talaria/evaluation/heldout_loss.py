"""Held-out loss of a finished model: the mean negative log-likelihood of supervised tokens, packed as in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.tokenization.dataset import Tokens

if TYPE_CHECKING:
    import torch

    from talaria.train.model.causal_lm import CausalLM


@dataclass(frozen=True)
class HeldOut:
    loss: float
    by_source: Mapping[str, float]
    """Of a mixture."""
    supervised_tokens: int
    conversations: int


def best_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none or ACCELERATE_USE_CPU is set."""
    from talaria.train.distributed.process_group import choose_device

    return choose_device(0)


def open_model(folder: str | Path, device: torch.device) -> CausalLM:
    """Open a model for evaluation: bf16 on a GPU, fp32 on the CPU, where bf16 is slow."""
    from talaria.train.model.causal_lm import ModelOptions
    from talaria.train.model.loading import load_model

    return load_model(
        folder, ModelOptions("bf16" if device.type == "cuda" else "fp32", activation_checkpointing="off"), device
    ).eval()


def heldout_loss(model: CausalLM, tokens: Tokens, max_tokens: int) -> HeldOut:
    """Return the mean loss per supervised token, measured as training does on one rank, and over how much it was taken."""
    from talaria.train.distributed.process_group import ProcessGroup
    from talaria.train.model.causal_lm import require_fixed_positions
    from talaria.train.validation import Validation

    alone = ProcessGroup(rank=0, size=1, local_rank=0, local_size=1, device=next(model.parameters()).device)
    longest = int(tokens.lengths.max(initial=0))
    require_fixed_positions(model, longest)
    validation = Validation.of(tokens, max_tokens=max(max_tokens, longest), ranks=1, quadratic=0.0)
    found = validation.loss(model, alone, stopping=lambda: False, alive=lambda doing=None: None)
    assert found is not None  # nobody told it to stop
    return HeldOut(found.loss, found.by_source, validation.targets, len(tokens))
