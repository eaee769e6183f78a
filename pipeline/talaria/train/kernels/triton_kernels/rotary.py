"""Norms of heads with rotary embedding, and their derivative."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher
from talaria.train.kernels.triton_kernels.sums import programs_for


@triton.jit
def _head_rows(tokens, group, GROUP: tl.constexpr, TOKENS: tl.constexpr):
    """Rows of a tile: TOKENS tokens by GROUP heads. Returns (token, head) of each."""
    row = tl.arange(0, TOKENS * GROUP)
    return tokens * TOKENS + row // GROUP, group * GROUP + row % GROUP


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _rope_kernel(
    qkv_ptr,
    wq_ptr,
    wk_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_ptr,
    eps,
    rows,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    NORM: tl.constexpr,
):
    group = tl.program_id(1)
    is_q = group < Q_HEADS // GROUP
    token, head = _head_rows(tl.program_id(0).to(tl.int64), group, GROUP, TOKENS)
    col = tl.arange(0, HALF)[None, :]
    inside = (token < rows)[:, None]
    at = token[:, None] * ((Q_HEADS + 2 * K_HEADS) * 2 * HALF) + head[:, None] * (2 * HALF) + col
    a = tl.load(qkv_ptr + at, inside, 0.0).to(tl.float32)
    b = tl.load(qkv_ptr + at + HALF, inside, 0.0).to(tl.float32)
    if NORM:
        rstd = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        w_ptr = wq_ptr if is_q else wk_ptr
        a = a * rstd * tl.load(w_ptr + col).to(tl.float32)
        b = b * rstd * tl.load(w_ptr + col + HALF).to(tl.float32)
    cos = tl.load(cos_ptr + token[:, None] * HALF + col, inside, 0.0)
    sin = tl.load(sin_ptr + token[:, None] * HALF + col, inside, 0.0)
    if is_q:
        to = q_ptr + token[:, None] * (Q_HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + col
        tl.store(to, a * cos - b * sin, inside)
        tl.store(to + HALF, b * cos + a * sin, inside)
    else:
        to = k_ptr + token[:, None] * (K_HEADS * 2 * HALF) + (head[:, None] - Q_HEADS) * (2 * HALF) + col
        tl.store(to, a * cos - b * sin, inside)
        tl.store(to + HALF, b * cos + a * sin, inside)


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _rope_backward_kernel(
    qkv_ptr,
    wq_ptr,
    wk_ptr,
    cos_ptr,
    sin_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    out_ptr,
    dw_ptr,
    eps,
    rows,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    NORM: tl.constexpr,
):
    group = tl.program_id(1)
    is_q = group < Q_HEADS // GROUP
    is_v = group >= (Q_HEADS + K_HEADS) // GROUP
    col = tl.arange(0, HALF)[None, :]
    dw_a = tl.zeros([TOKENS * GROUP, HALF], tl.float32)
    dw_b = tl.zeros([TOKENS * GROUP, HALF], tl.float32)
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, TOKENS), tl.num_programs(0)):
        token, head = _head_rows(block, group, GROUP, TOKENS)
        inside = (token < rows)[:, None]
        at = token[:, None] * ((Q_HEADS + 2 * K_HEADS) * 2 * HALF) + head[:, None] * (2 * HALF) + col
        if is_v:
            of = dv_ptr + token[:, None] * (K_HEADS * 2 * HALF) + (head[:, None] - Q_HEADS - K_HEADS) * (2 * HALF) + col
            tl.store(out_ptr + at, tl.load(of, inside, 0.0), inside)
            tl.store(out_ptr + at + HALF, tl.load(of + HALF, inside, 0.0), inside)
        else:
            if is_q:
                of = dq_ptr + token[:, None] * (Q_HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + col
            else:
                of = dk_ptr + token[:, None] * (K_HEADS * 2 * HALF) + (head[:, None] - Q_HEADS) * (2 * HALF) + col
            da = tl.load(of, inside, 0.0).to(tl.float32)
            db = tl.load(of + HALF, inside, 0.0).to(tl.float32)
            cos = tl.load(cos_ptr + token[:, None] * HALF + col, inside, 0.0)
            sin = tl.load(sin_ptr + token[:, None] * HALF + col, inside, 0.0)
            ga = da * cos + db * sin
            gb = db * cos - da * sin
            if NORM:
                a = tl.load(qkv_ptr + at, inside, 0.0).to(tl.float32)
                b = tl.load(qkv_ptr + at + HALF, inside, 0.0).to(tl.float32)
                rstd = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
                a *= rstd
                b *= rstd
                dw_a += ga * a
                dw_b += gb * b
                w_ptr = wq_ptr if is_q else wk_ptr
                ga *= tl.load(w_ptr + col).to(tl.float32)
                gb *= tl.load(w_ptr + col + HALF).to(tl.float32)
                mean = ((tl.sum(ga * a, 1) + tl.sum(gb * b, 1)) / (2 * HALF))[:, None]
                ga = (ga - a * mean) * rstd
                gb = (gb - b * mean) * rstd
            tl.store(out_ptr + at, ga, inside)
            tl.store(out_ptr + at + HALF, gb, inside)
    if NORM:
        to = dw_ptr + (group * tl.num_programs(0) + tl.program_id(0)) * (2 * HALF) + tl.arange(0, HALF)
        tl.store(to, tl.sum(dw_a, 0))
        tl.store(to + HALF, tl.sum(dw_b, 0))


def _grouping(q_heads: int, k_heads: int) -> int:
    """Heads a program handles: the largest power of two, at most 8, that divides both counts."""
    group = 8
    while q_heads % group or k_heads % group:
        group //= 2
    return group


def rope(
    qkv: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor, q_heads: int, k_heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    rows, half = cos.shape
    q = torch.empty(rows, q_heads, 2 * half, dtype=qkv.dtype, device=qkv.device)
    k = torch.empty(rows, k_heads, 2 * half, dtype=qkv.dtype, device=qkv.device)
    group = _grouping(q_heads, k_heads)
    tokens = max(1, 32 // group)
    if rows:
        _rope_kernel[(triton.cdiv(rows, tokens), (q_heads + k_heads) // group)](
            qkv,
            wq,
            wk,
            cos,
            sin,
            q,
            k,
            eps,
            rows,
            Q_HEADS=q_heads,
            K_HEADS=k_heads,
            HALF=half,
            GROUP=group,
            TOKENS=tokens,
            NORM=wq is not None,
            num_warps=4,
        )
    return q, k


def rope_backward(
    qkv: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    rows, half = cos.shape
    q_heads, k_heads = dq.shape[1], dk.shape[1]
    group = _grouping(q_heads, k_heads)
    tokens = max(1, 32 // group)
    groups = (q_heads + 2 * k_heads) // group
    programs = min(triton.cdiv(programs_for(8), groups), max(1, triton.cdiv(rows, tokens)))
    out = torch.empty_like(qkv)
    partial = torch.empty(groups, programs, 2 * half, dtype=torch.float32, device=qkv.device)
    _rope_backward_kernel[(programs, groups)](
        qkv,
        wq,
        wk,
        cos,
        sin,
        dq.contiguous(),
        dk.contiguous(),
        dv.contiguous(),
        out,
        partial,
        eps,
        rows,
        Q_HEADS=q_heads,
        K_HEADS=k_heads,
        HALF=half,
        GROUP=group,
        TOKENS=tokens,
        NORM=wq is not None,
        num_warps=4,
    )
    if wq is None:
        return out, None, None
    by_q = q_heads // group
    return out, partial[:by_q].flatten(0, 1), partial[by_q : by_q + k_heads // group].flatten(0, 1)
