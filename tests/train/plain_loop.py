"""Training the way one would write it first: padded batches, the library's own loss, PyTorch's own optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from talaria.tokenization.dataset import Tokens, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class PlainRun:
    losses: list[float]
    norms: list[float]
    model: Any


def train_split(job: TrainJob) -> Tokens:
    found = open_tokens(job.tokens)["train"]
    assert found is not None
    return found


def padded(tokens: Tokens, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels [rows, longest]; labels are -100 where nothing is supervised."""
    width = int(tokens.lengths[indices].max())
    batch = {
        name: torch.full((len(indices), width), fill)
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    }
    for place, index in enumerate(indices.tolist()):
        ids, mask, _ = tokens.gather([index])
        row = torch.from_numpy(ids.astype(np.int64))
        batch["input_ids"][place, : len(ids)] = row
        batch["attention_mask"][place, : len(ids)] = 1
        batch["labels"][place, : len(ids)] = torch.where(torch.from_numpy(mask), row, -100)
    return batch


def plain_loop(job: TrainJob, steps: int, device: str = "cpu", parts: int = 1) -> PlainRun:
    """The first steps of a job, each batch in so many parts."""
    train = job.config.train
    tokens = train_split(job)
    plan = Plan(
        tokens.lengths,
        tokens.targets,
        global_batch=train.global_batch,
        max_tokens=10**6,
        epochs=train.epochs,
        seed=train.seed,
        max_steps=train.max_steps,
    )
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32, attn_implementation="eager").to(device)
    model.get_input_embeddings().padding_idx = None
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    vectors = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps)
    total, warmup = len(plan), train.warmup_fraction * len(plan)
    run = PlainRun([], [], model)
    for k in range(steps):
        rate = train.lr * k / warmup if k <= warmup else None
        if rate is None:
            cosine = math.cos(math.pi * (k - warmup) / (total - warmup))
            rate = train.min_lr + (train.lr - train.min_lr) * (1 + cosine) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.zeros((), device=device)
        targets = int(tokens.targets[plan.indices(k)].sum())
        for indices in np.array_split(plan.indices(k), parts):
            batch = {name: tensor.to(device) for name, tensor in padded(tokens, indices).items()}
            part = model(**batch).loss * (int(tokens.targets[indices].sum()) / targets)
            part.backward()
            loss += part.detach()
        run.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)))
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(float(loss))
    return run
