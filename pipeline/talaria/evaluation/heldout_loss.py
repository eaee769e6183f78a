"""Held-out loss: the token mean of the negative log-likelihood over supervised tokens, packed as in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.tokenization.dataset import Tokens

if TYPE_CHECKING:
    import torch

    from talaria.train.model.causal_lm import CausalLM

_STEP = 256
"""Number of conversations that are packed into micro-batches at a time."""


@dataclass(frozen=True)
class HeldOut:
    loss: float
    supervised_tokens: int
    conversations: int


def best_device() -> torch.device:
    """Return the first GPU, or the CPU if there is none or ACCELERATE_USE_CPU is set."""
    from talaria.train.distributed.process_group import choose_device

    return choose_device(0)


def open_model(folder: str | Path, device: torch.device) -> CausalLM:
    """Open a model for evaluation: bf16 on a GPU, fp32 on the CPU, where bf16 is slow."""
    from transformers.utils import logging

    from talaria.train.model.causal_lm import ModelOptions, load_model

    logging.disable_progress_bar()  # redraws its line, which a log file keeps
    return load_model(
        folder, ModelOptions("bf16" if device.type == "cuda" else "fp32", activation_checkpointing="off"), device
    ).eval()


def heldout_loss(model: CausalLM, tokens: Tokens, max_tokens: int) -> HeldOut:
    """Return the model's mean loss per supervised token, and how many tokens and conversations it is taken over."""
    import torch

    from talaria.train.batching.dataloader import Loader
    from talaria.train.batching.plan import Plan
    from talaria.train.model.causal_lm import sum_loss

    device = next(model.parameters()).device
    room = max(max_tokens, int(tokens.lengths.max(initial=0)))
    plan = Plan(tokens.lengths, tokens.supervised, global_batch=_STEP, max_tokens=room)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad(), Loader(tokens, plan, rank=0, device=device) as steps:
        for step in steps:
            for batch in step.batches:
                total += sum_loss(model, batch)
                count += len(batch.targets)
    return HeldOut(float(total) / max(count, 1), count, len(tokens))
