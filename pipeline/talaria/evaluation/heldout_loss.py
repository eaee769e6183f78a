"""Held-out loss of a finished model: the mean negative log-likelihood of supervised tokens, packed as in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

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
    per_conversation: npt.NDArray[np.float64]
    """float64[conversations]: NLL summed over a conversation's targets."""


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
    """Return the mean loss per supervised token, packed as training does on one rank, and each conversation's part of it."""
    from talaria.train.batching.dataloader import Loader
    from talaria.train.model.causal_lm import require_fixed_positions
    from talaria.train.validation import SourceLoss

    longest = int(tokens.lengths.max(initial=0))
    require_fixed_positions(model, longest)
    whole = SourceLoss.of(tokens, max_tokens=max(max_tokens, longest), ranks=1, quadratic=0.0)
    losses = np.zeros(len(tokens))
    with Loader(tokens, whole.plan, rank=0, device=next(model.parameters()).device) as loader:
        for prepared in loader:
            for indices, batch in zip(prepared.plan.micro_batches[0], prepared.batches, strict=True):
                if len(indices):
                    losses[indices] = model.conversation_nll(batch).cpu().numpy()
    places = dict(tokens.layout.by_source(tokens.rows)) if tokens.layout else {}
    by_source = {name: float(losses[at].sum()) / max(1, int(tokens.targets[at].sum())) for name, at in places.items()}
    return HeldOut(float(losses.sum()) / max(1, whole.targets), by_source, whole.targets, len(tokens), losses)
