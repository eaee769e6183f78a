"""AdamW with fp32 masters and fp32 state, and Megatron's learning-rate schedule.

What is trained is this rank's stretch of each flattened parameter, so the arithmetic is the same wherever it runs.
Where a parameter is bf16 and precision is mixed, its fp32 master is the parameter itself and the 16 bits that rounding cut
off, kept beside it: exact, at half the memory of a copy. Under precision bf16 there is no master; weights are rounded
stochastically.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from talaria.train.kernels.elementwise import fused
from talaria.train.optim.bf16_masters import join_halves, round_stochastically, split_halves
from talaria.train.optim.span import ParamSpan

_CHUNK = 1 << 26
"""Elements updated at a time: bounds the temporaries of an update in plain PyTorch."""
_COPIED = 1 << 24
"""Elements that are joined and copied to the host at a time, beside a step that has filled the device."""
_SALT = 0x7FFFFFFF


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
    state_dtype: of the two moments; groups: indices of parameters that are updated together, in order (absent: all);
    updated: called with a group's indices once its update is under way; owned: this rank's stretch, by index, where it is no part
    of the parameter's own memory.
    """

    away: frozenset[int] = frozenset()
    """Indices of the parameters whose state is not on the device (see OffloadedAdamW)."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        low_bits: Sequence[Tensor | None],
        settings: AdamWSettings,
        state_dtype: torch.dtype,
        *,
        spans: Sequence[ParamSpan] | None = None,
        groups: Sequence[Sequence[int]] = (),
        updated: Callable[[Sequence[int]], None] = lambda indices: None,
        owned: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> None:
        self.settings, self.updated, self.state_dtype, self.owned = settings, updated, state_dtype, owned
        self.params = list(params)
        self.low_bits = [None if low is None else low.view(-1) for low in low_bits]
        self.spans = list(spans or [ParamSpan(0, param.numel(), param.numel()) for param in params])
        self.decays = [param.ndim >= 2 for param in params]
        self.groups = [group for group in groups or [range(len(self.params))] if len(group)]
        self._launches = Launches()
        self._prepared: list[Callable[[AdamWScalars], None]] | None = None
        self.steps_done = 0
        self.exp_avg = [self.moment(index) for index in range(len(self.params))]
        self.exp_avg_sq = [self.moment(index) for index in range(len(self.params))]

    def moment(self, index: int) -> Tensor:
        return torch.zeros_like(self.part(index), dtype=self.state_dtype)

    @torch.no_grad()
    def prepare(self, grads: Sequence[Tensor]) -> None:
        """Do what takes the host time in the step that follows with these gradients, while the device still computes them."""
        flat = [grad.view(-1) for grad in grads]
        tensors = list(zip(self.parts(), self.low_bits, flat, self.exp_avg, self.exp_avg_sq, strict=True))
        groups = [[(tensors[i], i, self.decays[i]) for i in group] for group in self.groups]
        if kernels := fused(tensors[0][0]):
            self._prepared = [self._launches.of(kernels, number, group) for number, group in enumerate(groups)]
        else:
            self._prepared = [functools.partial(self._apply_each, group) for group in groups]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], lr: float, scale: float) -> None:
        """One update at rate `lr` with `scale` * grads, each this rank's part (fp32, or bf16 under precision bf16)."""
        if self._prepared is None:
            self.prepare(grads)
        assert self._prepared is not None
        self.steps_done += 1
        scalars = AdamWScalars.of(self.settings, self.steps_done, lr, scale)
        for group, update_group in zip(self.groups, self._prepared, strict=True):
            update_group(scalars)
            self.updated(group)
        self._prepared = None

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
        _made_anew([param])

    def _apply_each(self, group: Sequence[Trained], scalars: AdamWScalars) -> None:
        for tensors, index, decays in group:
            self.apply(*tensors, scalars.of_parameter(index, decays))

    def release(self, share: int = 1) -> None:
        """Nothing of it passes through the device (see OffloadedAdamW)."""

    def parts(self) -> list[Tensor]:
        """This rank's stretch of each flattened parameter. Looked up anew each time: fully_shard may move it to other memory."""
        return [self.part(index) for index in range(len(self.params))]

    def part(self, index: int) -> Tensor:
        if index in self.owned:
            return self.owned[index]
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
        for start in range(0, len(part), _COPIED):
            piece = slice(start, start + _COPIED)
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
        self.updated([index])


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
    """31 bits of the step, and then also of the parameter, which make the random bits of stochastic rounding its own."""

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
            salt=step * 0x9E3779B1 & _SALT,
        )

    def of_parameter(self, index: int, decays: bool) -> AdamWScalars:
        return self._replace(keep=self.keep if decays else 1.0, salt=self.salt ^ parameter_salt(index))


def parameter_salt(index: int) -> int:
    return index * 0x85EBCA6B & _SALT


Tensors = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]
"""Of one parameter, flat: weight, low bits, gradient and both moments."""
Trained = tuple[Tensors, int, bool]
"""A parameter's tensors, its index, and whether it decays."""


def _made_anew(parts: Sequence[Tensor]) -> None:
    """As PyTorch's own writes do, on ranks too that have no part in it: say that what was made of the weights is now old."""
    increment_version(list(parts))


class Launches:
    """Tables of addresses for the GPU's kernel, a group of parameters each, made anew where a tensor has moved."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[list[list[int]], list[Any]]] = {}

    def of(self, kernels: Any, number: int, group: Sequence[Trained]) -> Callable[[AdamWScalars], None]:
        """Return what updates the group of this number."""
        addresses = [
            [*(0 if t is None else t.data_ptr() for t in tensors), len(tensors[0]), parameter_salt(index), int(decays)]
            for tensors, index, decays in group
        ]
        known, tables = self._tables.get(number, ([], []))
        if known != addresses:
            former = dict(enumerate(tables))
            kinds: dict[Any, list[list[int]]] = {}
            for (tensors, _, _), places in zip(group, addresses, strict=True):
                param, low, grad, m, _ = tensors
                kinds.setdefault(((param.dtype, grad.dtype, m.dtype), low is not None), []).append(places)
            device = group[0][0][0].device
            tables = [
                kernels.AdamWTable.of(places, *kind, device, former.get(place))
                for place, (kind, places) in enumerate(kinds.items())
            ]
            self._tables[number] = addresses, tables

        def launch(scalars: AdamWScalars) -> None:
            for table in tables:
                kernels.adamw_many_(table, scalars)
            _made_anew([tensors[0] for tensors, _, _ in group])

        return launch


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
