"""Triton kernels for what surrounds the matrix products of a decoder layer. Each has a plain twin in kernels.py.

All of them move each byte once and do their arithmetic in fp32. Row counts are not specialised, so a new micro-batch size
compiles nothing. Sums over tokens (gradients of norm weights) go through a partial sum a program, which keeps them deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def _programs(per_multiprocessor: int) -> int:
    return per_multiprocessor * torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@triton.jit
def _norm_kernel(
    x_ptr, add_ptr, w_ptr, sum_ptr, out_ptr, rstd_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < WIDTH
    x = tl.load(x_ptr + row * WIDTH + col, inside, 0.0)
    if ADD:
        x = (x.to(tl.float32) + tl.load(add_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row * WIDTH + col, x, inside)
    x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    out = x * rstd * tl.load(w_ptr + col, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + col, out, inside)
    tl.store(rstd_ptr + row, rstd)


def norm(x: Tensor, weight: Tensor, eps: float, add: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    out, rstd = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    total = x if add is None else torch.empty_like(x)
    if rows:
        _norm_kernel[(rows,)](
            x,
            add,
            weight,
            total,
            out,
            rstd,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            ADD=add is not None,
            num_warps=4,
        )
    return total, out, rstd


@triton.jit(do_not_specialize=["rows"])
def _norm_backward_kernel(
    x_ptr,
    rstd_ptr,
    w_ptr,
    grad_ptr,
    skip_ptr,
    dx_ptr,
    out_ptr,
    dw_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    col = tl.arange(0, BLOCK)
    inside = col < WIDTH
    w = tl.load(w_ptr + col, inside, 0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x_hat = tl.load(x_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32) * tl.load(rstd_ptr + row)
        grad = tl.load(grad_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
        scaled = grad * w
        dx = (scaled - x_hat * (tl.sum(scaled * x_hat, 0) / WIDTH)) * tl.load(rstd_ptr + row)
        dx += tl.load(skip_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
        tl.store(dx_ptr + row * WIDTH + col, dx, inside)
        tl.store(out_ptr + row * WIDTH + col, x_hat * w, inside)
        dw += grad * x_hat
    tl.store(dw_ptr + tl.program_id(0) * WIDTH + col, dw, inside)


def norm_backward(x: Tensor, rstd: Tensor, weight: Tensor, grad: Tensor, skip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    programs = min(_programs(4), max(rows, 1))
    dx, out = torch.empty_like(x), torch.empty_like(x)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _norm_backward_kernel[(programs,)](
        x,
        rstd,
        weight,
        grad,
        skip,
        dx,
        out,
        partial,
        rows,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
    )
    return dx, out, partial.sum(0)


@triton.jit
def _head_rows(tokens, group, GROUP: tl.constexpr, TOKENS: tl.constexpr):
    """Rows of a tile: TOKENS tokens by GROUP heads. Returns (token, head) of each."""
    row = tl.arange(0, TOKENS * GROUP)
    return tokens * TOKENS + row // GROUP, group * GROUP + row % GROUP


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
        to = dw_ptr + (tl.program_id(0) * tl.num_programs(1) + group) * (2 * HALF) + tl.arange(0, HALF)
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
    programs = min(triton.cdiv(_programs(8), groups), max(1, triton.cdiv(rows, tokens)))
    out = torch.empty_like(qkv)
    partial = torch.empty(programs, groups, 2 * half, dtype=torch.float32, device=qkv.device)
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
    return out, partial[:, :by_q].sum((0, 1)), partial[:, by_q : by_q + k_heads // group].sum((0, 1))


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + col, gate * tl.sigmoid(gate) * up, inside)


def swiglu(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _swiglu_kernel[(rows, triton.cdiv(width, 2048))](gate_up, out, WIDTH=width, BLOCK=2048, num_warps=8)
    return out


@triton.jit
def _swiglu_backward_kernel(gate_up_ptr, grad_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
    sig = tl.sigmoid(gate)
    silu = gate * sig
    tl.store(gate_up_ptr + row * (2 * WIDTH) + col, grad * up * (sig + silu * (1 - sig)), inside)
    tl.store(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, grad * silu, inside)
    tl.store(grad_ptr + row * WIDTH + col, silu * up, inside)


def swiglu_backward_(gate_up: Tensor, grad: Tensor) -> None:
    rows, width = grad.shape
    if rows:
        _swiglu_backward_kernel[(rows, triton.cdiv(width, 2048))](gate_up, grad, WIDTH=width, BLOCK=2048, num_warps=8)


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


@triton.jit
def _quantize_kernel(
    x_ptr,
    column_scale_ptr,
    out_ptr,
    scale_ptr,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        inside = start + col < WIDTH
        x = tl.load(x_ptr + row * stride + start + col, inside, 0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(column_scale_ptr + start + col, inside, 0.0)
        largest = tl.maximum(largest, tl.abs(x))
    scale = tl.maximum(tl.max(largest, 0), 1e-12) / 448.0
    tl.store(scale_ptr + row, scale)
    for start in range(0, WIDTH, BLOCK):
        inside = start + col < WIDTH
        x = tl.load(x_ptr + row * stride + start + col, inside, 0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(column_scale_ptr + start + col, inside, 0.0)
        x = tl.minimum(tl.maximum(x / scale, -448.0), 448.0)
        tl.store(out_ptr + row * WIDTH + start + col, x.to(tl.float8e4nv), inside)


def quantize(x: Tensor, column_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = min(4096, triton.next_power_of_2(width))
    if rows:
        _quantize_kernel[(rows,)](
            x, column_scale, out, scale, x.stride(0), WIDTH=width, BLOCK=block, SCALED=column_scale is not None, num_warps=8
        )
    return out, scale


@triton.jit(do_not_specialize=["salt"])  # a count known to be a multiple of 16 lets it load 16 bytes at a time
def _adamw_kernel(
    param_ptr,
    low_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    count,
    scale,
    keep,
    step_size,
    root_correction,
    beta1,
    beta2,
    eps,
    salt,
    HALF: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    master = tl.load(param_ptr + at, inside, 0)
    if HALF:
        bits = master.to(tl.int32) << 16
        if LOW:
            bits += tl.load(low_ptr + at, inside, 0).to(tl.int32)
        master = bits.to(tl.float32, bitcast=True)
    g = tl.load(grad_ptr + at, inside, 0.0).to(tl.float32) * scale
    m = tl.load(m_ptr + at, inside, 0.0).to(tl.float32)
    m += (g - m) * (1 - beta1)
    v = tl.load(v_ptr + at, inside, 0.0).to(tl.float32) * beta2 + g * g * (1 - beta2)
    master = master * keep - step_size * m / (tl.sqrt(v) / root_correction + eps)
    tl.store(m_ptr + at, m, inside)
    tl.store(v_ptr + at, v, inside)
    if HALF:
        bits = master.to(tl.int32, bitcast=True)
        if LOW:
            high = (bits + 0x8000) >> 16
            tl.store(low_ptr + at, (bits - (high << 16)).to(tl.int16), inside)
        else:
            noise = at.to(tl.uint32) * 747796405 + salt.to(tl.uint32)
            noise = (noise ^ (noise >> 16)) * 0x45D9F3B
            noise = (noise ^ (noise >> 16)) * 0x45D9F3B
            noise = (noise ^ (noise >> 16)) & 0xFFFF
            high = (bits + noise.to(tl.int32)) >> 16
        tl.store(param_ptr + at, high.to(tl.int16), inside)
    else:
        tl.store(param_ptr + at, master, inside)


def adamw_(param: Tensor, low: Tensor | None, grad: Tensor, m: Tensor, v: Tensor, numbers: tuple[float, ...]) -> None:
    """optim.update of a whole flat parameter; `numbers` are optim.Numbers."""
    half = param.dtype == torch.bfloat16
    stored = param.view(torch.int16) if half else param
    count = param.numel()
    if count:
        _adamw_kernel[(triton.cdiv(count, 2048),)](
            stored, low, grad, m, v, count, *numbers, HALF=half, LOW=low is not None, BLOCK=2048, num_warps=8
        )
