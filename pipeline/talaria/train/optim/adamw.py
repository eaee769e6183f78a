"""AdamW with fp32 masters and fp32 state, and Megatron's learning-rate schedule.

What is trained is this rank's stretch of each flattened parameter, so the arithmetic is the same wherever it runs.
Where a parameter is bf16 and precision is mixed, its fp32 master is the parameter itself and the 16 bits that rounding cut
off, kept beside it: exact, at half the memory of a copy. Under precision bf16 there is no master; weights are rounded
stochastically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from talaria.train.kernels.elementwise import fused
from talaria.train.optim.bf16_masters import join_halves, round_stochastically, split_halves
from talaria.train.optim.span import ParamSpan

_CHUNK = 1 << 26
"""Elements updated at a time: bounds the temporaries of an update in plain PyTorch."""


@dataclass(frozen=True)
class AdamWSettings:
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    """On matrices only."""


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter, 2019) on matrices only.

    params: what is trained; low_bits: per parameter the low 16 bits of its fp32 master, or None where it is its own master;
    spans: the stretch of each that this rank updates (absent: all of it), to which its low bits and moments belong;
    state_dtype: of the two moments; updated: called with a parameter's index once its update is under way.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        low_bits: Sequence[Tensor | None],
        settings: AdamWSettings,
        state_dtype: torch.dtype,
        *,
        spans: Sequence[ParamSpan] | None = None,
        updated: Callable[[int], None] = lambda index: None,
    ) -> None:
        self.settings, self.updated, self.state_dtype = settings, updated, state_dtype
        self.params = list(params)
        self.low_bits = [None if low is None else low.view(-1) for low in low_bits]
        self.spans = list(spans or [ParamSpan(0, param.numel(), param.numel()) for param in params])
        self.decays = [param.ndim >= 2 for param in params]
        self.steps_done = 0
        self.exp_avg = [self.moment(part) for part in self.parts()]
        self.exp_avg_sq = [self.moment(part) for part in self.parts()]

    def moment(self, part: Tensor) -> Tensor:
        return torch.zeros_like(part, dtype=self.state_dtype)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], lr: float, scale: float) -> None:
        """One update at rate `lr` with `scale` * grads, each this rank's part (fp32, or bf16 under precision bf16)."""
        self.steps_done += 1
        # Hundreds of small updates: what is done for each of them here must take less time than the update on a GPU.
        shared = AdamWScalars.of(self.settings, self.steps_done, lr, scale)
        state = zip(self.parts(), grads, self.low_bits, self.exp_avg, self.exp_avg_sq, strict=True)
        for index, (param, grad, low, m, v) in enumerate(state):
            scalars = shared.of_parameter(self.steps_done, index, self.decays[index])
            self.apply(param, low, grad.view(-1), m, v, scalars)
            self.updated(index)

    def apply(
        self, param: Tensor, low: Tensor | None, grad: Tensor, m: Tensor, v: Tensor, scalars: AdamWScalars, start: int = 0
    ) -> None:
        """Update flat tensors on the device; `start`: where in its parameter the first element lies."""
        if kernels := fused(param):
            kernels.adamw_(param, low, grad, m, v, scalars, start)
        else:
            for begin in range(0, len(param), _CHUNK):
                piece = slice(begin, begin + _CHUNK)
                lower = None if low is None else low[piece]
                update(param[piece], lower, grad[piece], m[piece], v[piece], scalars, start + begin)
        # As PyTorch's own writes do, on ranks too that have no part in it: what was made of the weight is now old.
        increment_version(param)

    def release(self, share: int = 1) -> None:
        """Nothing of it passes through the device (see OffloadedAdamW)."""

    def parts(self) -> list[Tensor]:
        """This rank's stretch of each flattened parameter. Looked up anew each time: fully_shard may move it to other memory."""
        return [self.part(index) for index in range(len(self.params))]

    def part(self, index: int) -> Tensor:
        flat, span = local(self.params[index].detach()).view(-1), self.spans[index]
        return flat[span.start : span.stop] if len(flat) == span.whole else flat

    def master(self, index: int) -> Tensor:
        """This rank's stretch of a parameter as the optimiser knows it."""
        part, low = self.part(index), self.low_bits[index]
        return part if low is None else join_halves(part, low)

    def master_dtype(self, index: int) -> torch.dtype:
        return self.params[index].dtype if self.low_bits[index] is None else torch.float32

    def copy_master(self, index: int, target: Tensor) -> None:
        """Copy this rank's stretch to host memory; on a GPU in the background, in pieces that take little memory of their own."""
        part, low = self.part(index), self.low_bits[index]
        for start in range(0, len(part), _CHUNK):
            piece = slice(start, start + _CHUNK)
            target[piece].copy_(part[piece] if low is None else join_halves(part[piece], low[piece]), non_blocking=True)

    @torch.no_grad()
    def set_master(self, index: int, value: Tensor) -> None:
        """Take over this rank's stretch; `updated` hands it to other ranks."""
        part, low = self.part(index), self.low_bits[index]
        for start in range(0, len(part), _CHUNK):
            piece = slice(start, start + _CHUNK)
            if low is None:
                part[piece].copy_(value[piece])
                continue
            high, cut = split_halves(value[piece].to(low.device))
            part[piece].copy_(high)
            low[piece].copy_(cut)
        self.updated(index)


class AdamWScalars(NamedTuple):
    """The numbers of one parameter's update, beside its tensors."""

    scale: float
    """of the gradient"""
    keep: float
    """1 - lr * decay"""
    step_size: float
    """lr / (1 - beta1^t)"""
    root_correction: float
    """sqrt(1 - beta2^t)"""
    beta1: float
    beta2: float
    eps: float
    salt: int
    """Under 2^31; makes the random bits of stochastic rounding this step's and parameter's own."""

    @classmethod
    def of(cls, settings: AdamWSettings, step: int, lr: float, scale: float) -> AdamWScalars:
        """Return those of step `step`, counted from 1, for a parameter that decays."""
        return cls(
            scale=scale,
            keep=1 - lr * settings.weight_decay,
            step_size=lr / (1 - settings.beta1**step),
            root_correction=math.sqrt(1 - settings.beta2**step),
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            salt=0,
        )

    def of_parameter(self, step: int, index: int, decays: bool) -> AdamWScalars:
        salt = (step * 0x9E3779B1 ^ index * 0x85EBCA6B) & 0x7FFFFFFF
        return self._replace(keep=self.keep if decays else 1.0, salt=salt)


def update(param: Tensor, low: Tensor | None, grad: Tensor, m: Tensor, v: Tensor, scalars: AdamWScalars, start: int = 0) -> None:
    """AdamW on a flat piece, in place, in fp32; `start`: where in its parameter the piece begins.

    Its twin on a GPU is triton_kernels/optim.py.
    """
    n = scalars
    master = param.float() if low is None else join_halves(param, low)
    g = grad.float() * n.scale
    new_m = torch.lerp(m.float(), g, 1 - n.beta1)
    new_v = v.float() * n.beta2 + g * g * (1 - n.beta2)
    master = master * n.keep - n.step_size * new_m / (new_v.sqrt() / n.root_correction + n.eps)
    m.copy_(new_m)
    v.copy_(new_v)
    if low is not None:
        high, cut = split_halves(master)
        param.copy_(high)
        low.copy_(cut)
    elif param.dtype == torch.bfloat16:
        param.copy_(round_stochastically(master, n.salt, start))
    else:
        param.copy_(master)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter or gradient; changes to it change the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
