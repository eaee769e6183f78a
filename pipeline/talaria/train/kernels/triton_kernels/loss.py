"""Negative log-likelihoods of logits, and their derivative."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher


@Launcher
@triton.jit
def _softmax_nll_kernel(
    logits_ptr, target_ptr, weight_ptr, nll_ptr, V: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr, GRAD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr = logits_ptr + row * V
    target = tl.load(target_ptr + row)
    z_target = tl.load(z_ptr + target).to(tl.float32)  # here, as gradients overwrite the logits below
    col = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        z = tl.load(z_ptr + start + col, start + col < V, float("-inf")).to(tl.float32)
        new = tl.maximum(top, z)
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - shift) + tl.exp(z - shift)
        top = new
    peak = tl.max(top, 0)
    lse = peak + tl.log(tl.sum(total * tl.exp(top - peak), 0))
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(weight_ptr + row)
    tl.store(nll_ptr + row, (lse - z_target) * weight)
    if GRAD:
        for start in range(0, V, BLOCK):
            inside = start + col < V
            z = tl.load(z_ptr + start + col, inside, float("-inf")).to(tl.float32)
            p = tl.exp(z - lse) - tl.where(start + col == target, 1.0, 0.0)
            tl.store(z_ptr + start + col, p * weight, inside)


def softmax_nll_(logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> Tensor:
    rows, vocabulary = logits.shape
    nll = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _softmax_nll_kernel[(rows,)](
        logits, targets, weights, nll, V=vocabulary, BLOCK=8192, WEIGHTED=weights is not None, GRAD=want_grad, num_warps=16
    )
    return nll
