"""The fused layer and its kernels equal plain PyTorch under autograd, on whatever device there is."""

import math

import numpy as np
import pytest
import torch
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import ReplicaLayout
from talaria.train.kernels import attention, cudnn_attention, graph_cache, linear
from talaria.train.kernels import elementwise as kernels
from talaria.train.kernels.matmul import (
    accumulate_into,
    lay_side_by_side,
    project,
    project_backward,
    side_by_side,
    weight_gradients,
)
from talaria.train.kernels.operand import Form, Operand
from talaria.train.kernels.plain_attention import padded_varlen, paddings, plain_varlen
from talaria.train.model.causal_lm import ModelOptions, keep_rounded, lay_out, layers, sum_loss
from talaria.train.model.loading import load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.optim.adamw import AdamW, AdamWScalars, AdamWSettings, Launches, update
from talaria.train.optim.bf16_masters import join_halves, round_stochastically, split_halves
from talaria.train.optim.lr_schedule import LRSchedule
from torch.nn.functional import rms_norm, silu

from tests.train.tiny_models import batch_of, conversations, save_tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
ADAMW = AdamWSettings(0.9, 0.95, 1e-8, 0.1)
HEADS, KV_HEADS, HALF = 4, 2, 8
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)


def draw(*shape, dtype=torch.float32, seed=0):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return made.to(DEVICE, dtype)


def assert_near(got, want, dtype):
    error = (got.double() - want.double()).norm() / want.double().norm()
    assert error < TOLERANCE[dtype], error.item()


def exact(*tensors):
    """Double-precision copies to differentiate."""
    return [t.double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_norm_and_its_derivative(rows, dtype):
    x, add, grad, skip = (draw(rows, 40, dtype=dtype, seed=seed) for seed in range(4))
    weight = draw(40, dtype=dtype)
    total, (out, *_), rstd = kernels.norm(x, weight, EPS, add)
    dx, (again, *_), parts = kernels.norm_backward(total, rstd, weight, grad, skip)
    d_weight = torch.ones(40, device=DEVICE)
    kernels.add_rows_(d_weight, parts)
    d_weight -= 1
    if not rows:
        assert out.shape == dx.shape == (0, 40)
        assert not d_weight.any()
        return
    (x64, add64), (weight64,), (total64,) = exact(x, add), exact(weight), exact(total)
    assert_near(total, x64 + add64, dtype)
    want = rms_norm(total64, (40,), weight64, EPS)
    assert_near(out, want, dtype)
    assert_near(again, want, dtype)
    want_dx, want_d_weight = torch.autograd.grad(want, (total64, weight64), grad.double())
    assert_near(dx, want_dx + skip.double(), dtype)
    assert_near(d_weight, want_d_weight, torch.float32 if dtype == torch.float32 else dtype)


def rotate(x, cos, sin):
    turned = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1)) * torch.complex(cos, sin)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("rows", [1, 37])
def test_rotary_embedding_and_its_derivative(rows, normed, dtype):
    width = 2 * HALF
    qkv = draw(rows, (HEADS + 2 * KV_HEADS) * width, dtype=dtype)
    angles = draw(rows, HALF)
    cos, sin = angles.cos(), angles.sin()
    weights = [draw(width, dtype=dtype, seed=seed) for seed in (1, 2)] if normed else [None, None]
    q, k = kernels.rope(qkv, *weights, cos, sin, HEADS, KV_HEADS, EPS)
    grads = [draw(rows, heads, width, dtype=dtype, seed=heads) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    d_qkv, *d_weights = kernels.rope_backward(qkv, *weights, cos, sin, *grads, EPS)

    (qkv64,) = exact(qkv)
    weights64 = exact(*weights) if normed else []
    heads64 = qkv64.view(rows, -1, width).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    outs = [rms_norm(h, (width,), w, EPS) for h, w in zip(heads64, weights64, strict=False)] if normed else heads64[:2]
    outs = [rotate(h, cos.double(), sin.double()) for h in outs]
    assert_near(q, outs[0], dtype)
    assert_near(k, outs[1], dtype)
    want = torch.autograd.grad([*outs, heads64[2]], [qkv64, *weights64], [g.double() for g in grads])
    assert_near(d_qkv, want[0], dtype)
    for got, expected in zip(d_weights, want[1:] if normed else (), strict=False):
        assert_near(got.sum(0), expected, dtype)
    assert torch.equal(d_qkv.view(rows, -1, width)[:, HEADS + KV_HEADS :], grads[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_sums_of_columns(rows, dtype):
    x = draw(rows, 200, dtype=dtype)
    sums = kernels.column_sums(x)
    total = torch.ones(150, device=DEVICE)
    kernels.add_rows_(total, sums[:, 50:])
    torch.testing.assert_close(total, 1 + x[:, 50:].double().sum(0).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_and_its_derivative(dtype):
    gate_up, grad = draw(23, 96, dtype=dtype), draw(23, 48, dtype=dtype)
    (both,) = exact(gate_up)
    gate, up = both.chunk(2, dim=1)
    want = silu(gate) * up
    (want_grad,) = torch.autograd.grad(want, both, grad.double())
    assert_near(kernels.swiglu(gate_up).exact, want, dtype)
    other, untouched = gate_up.clone(), grad.clone()
    kernels.swiglu_backward_(other, untouched, Form.EXACT, Form.NONE)
    assert_near(other, want_grad, dtype)
    assert torch.equal(untouched, grad)
    kernels.swiglu_backward_(gate_up, grad, Form.EXACT, Form.EXACT)
    assert_near(gate_up, want_grad, dtype)
    assert_near(grad, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_nll_and_its_derivative(weighted, dtype):
    logits = draw(9, 9001, dtype=dtype) * 4
    targets = torch.arange(0, 9000, 1000, device=DEVICE)
    weights = torch.linspace(0, 2, 9, device=DEVICE) if weighted else None
    (z,) = exact(logits)
    want = -z.log_softmax(-1).gather(1, targets[:, None])[:, 0] * (1 if weights is None else weights)
    (want_grad,) = torch.autograd.grad(want.sum(), z)
    untouched = logits.clone()
    assert_near(kernels.softmax_nll_(untouched, targets, weights, False), want, torch.float32)
    assert torch.equal(untouched, logits)
    assert_near(kernels.softmax_nll_(logits, targets, weights, True), want, torch.float32)
    assert_near(logits, want_grad, dtype)


@pytest.mark.skipif(DEVICE == "cpu", reason="fused attention needs a GPU")
@pytest.mark.parametrize("window", [None, 2, 100, 500, 4096])
@pytest.mark.parametrize("kernel", [attention.FLASH, attention.CUDNN], ids=lambda kernel: kernel.name)
def test_fused_attention_equals_the_plain_one(kernel, window):
    if kernel is attention.CUDNN and attention.choose("cuda", torch.bfloat16, 128)[0] is not kernel:
        pytest.skip("nvidia-cudnn-frontend is not installed or not for this GPU")
    cu = torch.tensor([0, 1, 200, 200, 777, 1000], dtype=torch.int32, device=DEVICE)
    packed = attention.PackedSequences(cu, 577, kernel)
    q, k, both, grad = (draw(1000, heads, 128, dtype=torch.bfloat16, seed=heads) for heads in (8, 2, 3, 8))
    v = both[:, 1:]
    out, lse = packed.forward(q, k, v, 0.1, window)
    inputs = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    want = plain_varlen(*(t.float() for t in inputs), cu, 0.1, window)
    assert_near(out, want, torch.bfloat16)
    want_grads = torch.autograd.grad(want, inputs, grad.float())
    for got, expected in zip(packed.backward(grad, q, k, v, out, lse, 0.1, window), want_grads, strict=True):
        assert_near(got, expected, torch.bfloat16)


@pytest.mark.skipif(DEVICE == "cpu", reason="fused attention needs a GPU")
def test_a_graph_read_from_disk_gives_the_same_numbers_to_the_bit(tmp_path, monkeypatch):
    """Also after its file was cut off, and after it was given something that has the right digest and is no graph."""
    if attention.choose("cuda", torch.bfloat16, 128)[0] is not attention.CUDNN:
        pytest.skip("nvidia-cudnn-frontend is not installed or not for this GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, built = tmp_path / "talaria" / "attention", []
    build = cudnn_attention._built
    monkeypatch.setattr(cudnn_attention, "_built", lambda *args: built.append(args) or build(*args))
    cu = torch.tensor([0, 1, 200, 777, 1000], dtype=torch.int32, device=DEVICE)
    q, k, v, grad = (draw(1000, heads, 128, dtype=torch.bfloat16, seed=heads) for heads in (8, 2, 2, 8))

    def numbers():
        cudnn_attention._build.cache_clear()
        built.clear()
        packed = attention.PackedSequences(cu, 577, attention.CUDNN)
        out, lse = packed.forward(q, k, v, 0.1, 100)
        return [out, lse, *packed.backward(grad, q, k, v, out, lse, 0.1, 100)]

    want = numbers()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(built) == len(kept) == 2
    assert all(map(torch.equal, numbers(), want))
    assert not built
    for path, content in kept.items():
        path.write_bytes(content[:-1])
    assert all(map(torch.equal, numbers(), want))
    assert len(built) == 2
    monkeypatch.setattr(graph_cache, "read", lambda key: ([["q", 1]], b"no graph"))
    assert all(map(torch.equal, numbers(), want))
    assert len(built) == 2


def test_a_fixed_order_is_asked_for_where_the_kernel_is_launched_and_nowhere_else(monkeypatch):
    seen = []

    def launched(*args, **how):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()))
        return args[1:4]

    monkeypatch.setattr(attention, "flash_backward", launched)
    q = draw(5, 2, 8)
    packed = attention.PackedSequences(torch.tensor([0, 5], dtype=torch.int32), 5, attention.FIXED)
    packed.backward(q, q, q, q, q, q, 0.1)
    assert seen == [(True, False)]  # only warned, it would add up in any order
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(DEVICE == "cpu", reason="fused attention needs a GPU")
def test_a_fixed_order_repeats_to_the_bit():
    cu = torch.tensor([0, 3000, 4000], dtype=torch.int32, device=DEVICE)
    packed = attention.PackedSequences(cu, 3000, attention.FIXED)
    q, k, v, grad = (draw(4000, heads, 128, dtype=torch.bfloat16, seed=heads) for heads in (8, 2, 2, 8))
    out, lse = packed.forward(q, k, v, 0.1)
    first = packed.backward(grad, q, k, v, out, lse, 0.1)
    for _ in range(5):
        assert all(map(torch.equal, packed.backward(grad, q, k, v, out, lse, 0.1), first))


@pytest.mark.parametrize("window", [None, 2, 100])
def test_padded_attention_equals_the_plain_one(window):
    cu = torch.tensor([0, 1, 60, 60, 177, 200], dtype=torch.int32, device=DEVICE)
    inputs = [draw(200, heads, 16, dtype=torch.float32, seed=heads).requires_grad_() for heads in (8, 2, 3)]
    inputs[2] = inputs[2][:, 1:]
    grad = draw(200, 8, 16, dtype=torch.float32)
    results = [plain_varlen(*inputs, cu, 0.1, window), padded_varlen(*inputs, paddings(cu), 0.1, window)]
    torch.testing.assert_close(results[1], results[0])
    want, got = (torch.autograd.grad(out, inputs, grad) for out in results)
    torch.testing.assert_close(got, want)


def test_cudnn_is_left_where_it_would_need_much_scratch_memory():
    """One long conversation is not padded to sixteen; one among many short ones goes to FlashAttention-2."""

    def chosen(lengths):
        ends = torch.tensor(lengths).cumsum(0).int()
        cu = torch.cat([torch.zeros(1, dtype=torch.int32), ends])
        packed = attention.pack(cu, max(lengths), attention.CUDNN, features=4096)
        return packed.kernel, packed.offsets.count, packed.offsets.longest

    assert chosen([405] * 32) == (attention.CUDNN, 32, 512)
    assert chosen([405] * 33) == (attention.CUDNN, 48, 512)
    assert chosen([32768]) == (attention.CUDNN, 1, 32768)
    assert chosen([9000, 9000, 9000]) == (attention.CUDNN, 4, 12288)
    assert chosen([20000, *[405] * 30])[0] is attention.FLASH
    assert cudnn_attention.scratch_bytes(16, 32768, 4096) == 16 << 30


def test_weights_side_by_side_are_multiplied_as_one():
    apart = [draw(rows, 6, seed=rows) for rows in (4, 3, 5)]
    assert side_by_side(apart) is None
    together = [torch.nn.Parameter(w.clone(), requires_grad=False) for w in apart]
    lay_side_by_side(together)
    assert torch.equal(side_by_side(together), torch.cat([w.data for w in apart]))
    x, dy = draw(7, 6), draw(7, 12)
    x, dy = Operand(x), Operand(dy)
    for function, argument in ((project, x), (project_backward, dy)):
        torch.testing.assert_close(function(argument, together), function(argument, apart))
    for got, want in zip(weight_gradients(together, dy, x), weight_gradients(apart, dy, x), strict=True):
        torch.testing.assert_close(got, want)


def with_biases(folder):
    """Give all biases values other than the 0 that they are drawn as."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        if name.endswith(".bias"):
            tensors[name] = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


MODELS = {
    "qwen3": {},
    "llama": {},
    "llama, all biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen2, a window in some layers": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "mistral": {"sliding_window": 5},
}


@pytest.fixture(params=MODELS)
def folder(tmp_path, request):
    return with_biases(save_tiny(tmp_path, request.param.partition(",")[0], **MODELS[request.param]))


def gradients(model, batch):
    sum_loss(model, batch.to(DEVICE), 0.5).backward()
    return {name: p.grad for name, p in model.named_parameters()}


LORAS = {
    "no adapters": None,
    "all": LoraOptions(rank=3, alpha=5, dropout=0.0, targets="all-linear"),
    "q and v": LoraOptions(rank=2, alpha=32, dropout=0.0, targets=r".*\.(q_proj|v_proj)"),
}


def same_adapters(*models):
    """Draw the adapters of both, the second matrix too, which begins as zeros."""
    for model in models:
        for seed, (name, param) in enumerate(model.named_parameters()):
            if "lora_" in name:
                param.data = draw(*param.shape, seed=seed, dtype=param.dtype) * 0.2


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("checkpointing", ["auto", "full", "off"])
def test_fused_layers_equal_hugging_faces(folder, lora, checkpointing):
    batch = batch_of(conversations([8, 13, 1, 21]))
    how = {"activation_checkpointing": checkpointing, "lora": lora}
    plain, fused = (load_model(folder, ModelOptions("fp32", kernels=kind, **how), DEVICE) for kind in ("plain", "auto"))
    same_adapters(plain, fused)
    assert fused.fused
    assert not plain.fused
    torch.testing.assert_close(fused.logits(batch.to(DEVICE)), plain.logits(batch.to(DEVICE)), rtol=1e-4, atol=1e-5)
    got, want = gradients(fused, batch), gradients(plain, batch)
    assert got.keys() == want.keys()
    for name, grad in got.items():
        assert (grad is None) == (want[name] is None), name
        if grad is not None:
            assert (grad - want[name]).norm() < 1e-4 * want[name].norm(), name


@pytest.mark.parametrize(
    "trained", [("k_proj", "norm"), ("q_proj.weight", "v_proj.bias", "down_proj"), ("embed_tokens", "up_proj")]
)
def test_frozen_parameters_get_no_gradient_and_others_their_own(folder, trained):
    batch = batch_of(conversations([8, 13, 1, 21]))
    plain, fused = (load_model(folder, ModelOptions("fp32", kernels=kind), DEVICE) for kind in ("plain", "auto"))
    for model in (plain, fused):
        for name, param in model.named_parameters():
            param.requires_grad_(any(part in name for part in trained))
    got, want = gradients(fused, batch), gradients(plain, batch)
    assert any(grad is not None for grad in want.values())
    for name, grad in got.items():
        assert (grad is None) == (want[name] is None), name
        if grad is not None:
            assert (grad - want[name]).norm() < 1e-4 * want[name].norm(), name


@pytest.mark.parametrize("lora", ["no adapters", "all"])
@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("total_dtype", DTYPES)
def test_gradients_go_straight_to_their_totals(folder, lora, laid_out, total_dtype):
    """Two micro-batches into totals equal the sum of what autograd gives for each."""
    batches = [batch_of(conversations(lengths, seed=seed)) for seed, lengths in enumerate(([8, 13], [21]))]
    precision = "bf16" if total_dtype == torch.bfloat16 else "fp32"
    plain, model = (load_model(folder, ModelOptions(precision, lora=LORAS[lora]), DEVICE) for _ in range(2))
    same_adapters(plain, model)
    if laid_out:  # both, as another product rounds differently
        lay_out(model)
        lay_out(plain)
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    flat = torch.zeros(sum(p.numel() for p in named.values()), dtype=total_dtype, device=DEVICE)
    totals = {n: t.view_as(named[n]) for n, t in zip(named, flat.split([p.numel() for p in named.values()]), strict=True)}
    for name, param in named.items():
        if param.dtype == total_dtype:
            param.grad = totals[name]
        running = accumulate_into(param, totals[name])
        if param.dtype != total_dtype:  # what an earlier step left there is written over
            totals[name].fill_(math.nan)
            running.stale = True
    for batch in batches:
        sum_loss(model, batch.to(DEVICE), 0.5).backward()
        sum_loss(plain, batch.to(DEVICE), 0.5).backward()
    for name, param in plain.named_parameters():
        if not param.requires_grad:
            continue
        error = (totals[name].float() - param.grad.float()).norm() / param.grad.float().norm()
        # Much of a key's bias cancels: in a softmax only differences between keys count.
        assert error < (1e-5 if total_dtype == torch.float32 else 4e-2 if name.endswith("k_proj.bias") else 2e-2), name
        assert named[name].grad is (totals[name] if param.dtype == total_dtype else None)


def test_a_gradient_in_its_total_cannot_be_scaled_afterwards(folder):
    model = load_model(folder, ModelOptions("fp32"), "cpu")
    head = model.core.lm_head.weight
    accumulate_into(head, torch.zeros_like(head))
    with pytest.raises(RuntimeError):
        (2 * sum_loss(model, batch_of(conversations([8])))).backward()


def test_evaluation_leaves_totals_alone(folder):
    model = load_model(folder, ModelOptions("fp32"), DEVICE)
    totals = []
    for param in model.parameters():
        totals.append(torch.zeros_like(param))
        accumulate_into(param, totals[-1])
    with torch.no_grad():
        assert sum_loss(model, batch_of(conversations([8, 5])).to(DEVICE)) > 0
    assert not any(total.any() for total in totals)


def test_fused_layers_in_bf16_stay_near_fp32(folder):
    batch = batch_of(conversations([30, 50, 20]))
    exact_model, low = (load_model(folder, ModelOptions(precision), DEVICE) for precision in ("fp32", "bf16"))
    with torch.no_grad():
        for p, q in zip(exact_model.parameters(), low.parameters(), strict=True):
            p.copy_(q)
    losses = [sum_loss(model, batch.to(DEVICE), 1 / len(batch.targets)) for model in (exact_model, low)]
    assert abs(losses[0].item() - losses[1].item()) < 0.02 * losses[0].item()
    for loss in losses:
        loss.backward()
    norms = [torch.stack([p.grad.float().norm() for p in m.parameters()]).norm() for m in (exact_model, low)]
    difference = torch.stack(
        [(p.grad - q.grad.float()).norm() for p, q in zip(exact_model.parameters(), low.parameters(), strict=True)]
    )
    assert difference.norm() / norms[0] < 0.05


def test_generation_still_goes_through_hugging_faces_layers(folder):
    model = load_model(folder, ModelOptions("fp32"), "cpu")
    text = torch.from_numpy(conversations([9])[0]).long()
    with torch.no_grad():
        ours = model.logits(batch_of([text.numpy()]))
        model.core.set_attn_implementation("sdpa")
        torch.testing.assert_close(model.core(text[None]).logits[0], ours, rtol=1e-4, atol=1e-5)
    assert len(layers(model)) == 3


def train(folder, precision, steps, **settings):
    """Losses of `steps` optimiser steps of two micro-batches, through the trainer's own parts."""
    world = ProcessGroup(0, 1, 0, 1, torch.device(DEVICE))
    model = load_model(folder, ModelOptions(precision, **settings), DEVICE)
    trained = parallel.distribute(model, layers(model), precision, ReplicaLayout(1, 1), world)
    lay_out(model)
    keep_rounded(model, None)
    state_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    optimizer = AdamW([param for _, param in trained.named], trained.low_bits, ADAMW, state_dtype)
    schedule = LRSchedule(3e-3, 1e-3, 0.1, steps)
    losses = []
    for step in range(steps):
        batches = [batch_of(repeating(step * 2 + part)).to(DEVICE) for part in range(2)]
        count = sum(len(batch.targets) for batch in batches)
        parts = []
        for batch in batches:
            loss = sum_loss(model, batch, 1 / count)
            loss.backward()
            parts.append(loss.item())
        grads = trained.gradients.reduce()
        norm = float(torch.nn.utils.get_total_norm(grads))
        optimizer.step(grads, schedule(step), min(1.0, 1.0 / norm))
        trained.gradients.clear()
        losses.append(sum(parts))
    return losses


def repeating(seed):
    """Conversations that repeat four random tokens: to be learnt by attending to what came before."""
    generator = np.random.default_rng(seed)
    return [np.tile(generator.integers(0, 16, 4, dtype=np.int32), 6) for _ in range(8)]


@pytest.fixture(scope="module")
def fp32_losses(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("numerics"), hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    losses = train(folder, "fp32", 50)
    assert losses[-1] < 0.75 * losses[0]  # it does learn
    return folder, losses


@pytest.mark.parametrize(
    ("precision", "products", "bound"),
    [
        ("mixed", "exact", 0.01),
        ("mixed", "fp8, all three", 0.05),
        ("bf16", "exact", 0.05),
        ("bf16", "fp8", 0.05),
    ],
)
def test_fifty_steps_follow_those_in_fp32(fp32_losses, precision, products, bound, monkeypatch):
    """The bound is on the relative difference of the loss at every step."""
    monkeypatch.setattr(linear, "NARROWEST", 1)
    if products == "fp8, all three":
        monkeypatch.setattr(linear, "MANY", 1)
    folder, expected = fp32_losses
    losses = train(folder, precision, 50, fp8=products != "exact")
    differences = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
    assert max(differences) < bound, max(differences)


@pytest.mark.parametrize("size", [4096, 5000])  # of which the second is no multiple of 16
@pytest.mark.parametrize("kind", ["fp32", "halves", "stochastic"])
def test_the_optimisers_kernel_equals_its_plain_twin(kind, size):
    half = kind != "fp32"
    state_dtype = torch.bfloat16 if kind == "stochastic" else torch.float32
    master = draw(size) * 0.02
    high, low = split_halves(master)
    param = high if half else master
    grad, m, v = draw(size, seed=1), draw(size, seed=2) * 0.1, draw(size, seed=3).square()
    scalars = AdamWScalars.of(ADAMW, 3, 1e-3, 0.5)
    states = []

    def plain(*tensors):
        update(*tensors, scalars.of_parameter(7, decays=True))

    def fused(*tensors):
        others = [None if t is None else t.clone() for t in tensors]
        group = [(others, 6, False), (tensors, 7, True), ([None if t is None else t[:1] for t in others], 8, True)]
        Launches().of(kernels.fused(param), 0, group)(scalars)

    for step in (plain, fused if kernels.fused(param) else plain):
        copies = [t.clone() for t in (param, low, grad, m.to(state_dtype), v.to(state_dtype))]
        copies[1] = copies[1] if kind == "halves" else None
        step(*copies)
        states.append([copies[0] if kind != "halves" else join_halves(copies[0], copies[1]), *copies[3:]])
    for name, got, want in zip(("weight", "m", "v"), states[1], states[0], strict=True):
        assert_near(got, want, torch.bfloat16 if kind == "stochastic" else torch.float32)
        assert not torch.equal(want.float(), {"weight": master, "m": m, "v": v}[name]), name


def test_stochastic_rounding_is_right_on_average():
    value = 1.0 + 2**-10  # an eighth of the way between two neighbours in bf16
    rounded = round_stochastically(torch.full((100_000,), value, device=DEVICE), salt=12345).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert abs(rounded.mean().item() - value) < 2**-7 * 0.005
    other = round_stochastically(torch.full((100_000,), value, device=DEVICE), salt=12346).float()
    assert not torch.equal(rounded, other)
    halves = [round_stochastically(torch.full((50_000,), value, device=DEVICE), 12345, start) for start in (0, 50_000)]
    assert torch.equal(torch.cat(halves).float(), rounded)
    exact_values = draw(1000, dtype=torch.bfloat16)
    assert torch.equal(round_stochastically(exact_values.float(), 1), exact_values)
