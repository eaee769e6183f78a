"""AdamW with fp32 masters and fp32 state, and Megatron's learning-rate schedule.

What is trained is this rank's part of each parameter, whole or a shard, so the arithmetic is the same wherever it runs.
Where a parameter is bf16 and precision is mixed, its fp32 master is the parameter itself and the 16 bits that rounding cut
off, kept beside it: exact, at half the memory of a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from pipeline.config import Train

_CHUNK = 1 << 26
"""Elements updated at a time: bounds the temporaries of an update that is not compiled."""


def learning_rate(step: int, total: int, train: Train) -> float:
    """Rate of step `step` (from 0) of `total`: linear from 0 in warm-up, then a cosine to min_lr.

    Megatron-LM's OptimizerParamScheduler; its warm-up, a fraction of the steps, is not rounded.
    """
    warmup = train.warmup_fraction * total
    if warmup > 0 and step <= warmup:
        return train.lr * step / warmup
    if step > total:
        return train.min_lr
    ratio = (step - warmup) / (total - warmup)
    return train.min_lr + 0.5 * (math.cos(math.pi * ratio) + 1.0) * (train.lr - train.min_lr)


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter, 2019) on matrices only.

    params: what is trained; cut_off: per parameter the low 16 bits of its fp32 master, or None where it is its own master.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], cut_off: Sequence[Tensor | None], train: Train, *, compiled: bool = False
    ) -> None:
        self.train = train
        self.params = list(params)
        self.cut_off = list(cut_off)
        self.decays = [param.ndim >= 2 for param in params]
        self.steps_done = 0
        state_dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        self.exp_avg = [torch.zeros_like(part, dtype=state_dtype) for part in self.parts()]
        self.exp_avg_sq = [torch.zeros_like(part, dtype=state_dtype) for part in self.parts()]
        self._update: Callable[..., None] = torch.compile(update, dynamic=True, fullgraph=True) if compiled else update

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], lr: float, scale: float) -> None:
        """One update at rate `lr` with `scale` * grads, each this rank's part (fp32, or bf16 under precision bf16)."""
        self.steps_done += 1
        train = self.train
        # As tensors: a compiled update must not be specialised on numbers that change with every step.
        scalars = torch.tensor(
            [
                scale,
                lr,
                lr * train.weight_decay,
                1 - train.beta1**self.steps_done,
                math.sqrt(1 - train.beta2**self.steps_done),
            ],
            device=self.params[0].device,
        )
        constants = train.beta1, train.beta2, train.eps
        for param, low, grad, m, v, decays in zip(
            self.parts(), self.cut_off, grads, self.exp_avg, self.exp_avg_sq, self.decays, strict=True
        ):
            flat = [t if t is None else t.view(-1).split(_CHUNK) for t in (param, low, grad, m, v)]
            for index in range(len(flat[0] or ())):
                chunk = [None if parts is None else parts[index] for parts in flat]
                self._update(*chunk, scalars, *constants, decays)

    def parts(self) -> list[Tensor]:
        """This rank's part of each parameter. Looked up anew each time: fully_shard may move it to other memory."""
        return [local(param.detach()) for param in self.params]

    def master(self, index: int) -> Tensor:
        """This rank's part of a parameter as the optimiser knows it."""
        part, low = local(self.params[index].detach()), self.cut_off[index]
        return part if low is None else join_halves(part, low)

    @torch.no_grad()
    def set_master(self, index: int, value: Tensor) -> None:
        part, low = local(self.params[index].detach()), self.cut_off[index]
        if low is None:
            part.copy_(value)
        else:
            high, cut = split_halves(value.to(low.device))
            part.copy_(high)
            low.copy_(cut)


def update(
    param: Tensor,
    low: Tensor | None,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    scalars: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decays: bool,
) -> None:
    """AdamW on one flat piece, in place, in fp32; `scalars`: scale, lr, lr * decay, 1 - beta1^t, sqrt(1 - beta2^t)."""
    scale, lr, shrink, correction1, root_correction2 = scalars.unbind()
    master = param.float() if low is None else join_halves(param, low)
    g = grad.float() * scale
    if decays:
        master = master * (1 - shrink)
    new_m = torch.lerp(m.float(), g, 1 - beta1)
    new_v = v.float() * beta2 + g * g * (1 - beta2)
    master = master - lr / correction1 * new_m / (new_v.sqrt() / root_correction2 + eps)
    m.copy_(new_m)
    v.copy_(new_v)
    if low is None:
        param.copy_(master)
    else:
        high, cut = split_halves(master)
        param.copy_(high)
        low.copy_(cut)


def split_halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 -> (bf16 rounded to nearest, ties away from zero; int16 difference of the bit patterns). Exact and reversible."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join_halves(high: Tensor, low: Tensor) -> Tensor:
    """The fp32 that `split_halves` took apart."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter or gradient; changes to it change the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
