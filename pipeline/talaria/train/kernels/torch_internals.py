"""The operators of PyTorch that are not public and that Talaria calls all the same: here and nowhere else in the trainer.

Public PyTorch has no packed attention with a backward pass of one's own, no scaled 8-bit product of two matrices and no check
that a GPU does without being waited for. tests/train/test_internals.py says which are still there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Causal FlashAttention-2 inside each sequence. Returns (out [T, heads, d], log-sum-exp fp32[heads, T]).

    `window`: the most tokens, itself among them, that a token attends to; None for all before it.
    """
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, True, False, scale=scale, **_sides(window))
    return out, lse


def flash_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dq, dk, dv) of `flash_forward`."""
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout's generator
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        d_out, q, k, v, out, lse, *lengths, 0.0, True, unused, unused, scale=scale, **_sides(window)
    )
    return dq, dk, dv


def _sides(window: int | None) -> dict[str, int]:
    """FlashAttention counts the tokens beside the query's own."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def scaled_product(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    *,
    exact_sums: bool = False,
) -> Tensor:
    """(a * a_scale) @ (b * b_scale).T + bias of e4m3 matrices on a GPU; scales: fp32[1] or one a row, [M, 1] and [1, N].

    exact_sums: keep partial sums in fp32, not in the fewer bits of the tensor cores' own.
    """
    return torch._scaled_mm(a, b.t(), a_scale, b_scale, bias=bias, out_dtype=dtype, use_fast_accum=not exact_sums)


def embedding_gradient(grad: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Return [rows, H], the derivative of an embedding by its table; every row counts, padding or not."""
    # On a CPU torch rounds a sum of bf16 at each occurrence: from 256 equal ones on nothing is added.
    exact = grad.float() if grad.device.type == "cpu" else grad
    table: Tensor = torch.ops.aten.embedding_dense_backward(exact, ids, rows, -1, False)
    return table.to(grad.dtype)


def assert_on_device(condition: Tensor) -> None:
    """Fail once the device has computed that `condition` is false; the host does not wait for it."""
    torch._assert_async(condition)
