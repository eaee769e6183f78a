"""Operands in 8 bits, the kernels that make them, and the products that take them, on whatever device there is."""

import pytest
import torch
from talaria.train.kernels import elementwise as kernels
from talaria.train.kernels import linear
from talaria.train.kernels.eight_bits import Draw, RoundedWeight, contributions, operand, transposed
from talaria.train.kernels.matmul import (
    accumulate_into,
    keep_in_eight_bits,
    lay_side_by_side,
    project,
    project_backward,
    weight_gradients,
)
from talaria.train.kernels.operand import FP8, Form, Operand
from talaria.train.model.causal_lm import ModelOptions, describe, keep_rounded, lay_out, sum_loss
from talaria.train.model.loading import load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.optim.adamw import AdamW, AdamWSettings

from tests.train.tiny_models import batch_of, conversations, save_tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


@pytest.fixture(autouse=True)
def narrow_layers_too(monkeypatch):
    """Models are tiny here."""
    monkeypatch.setattr(linear, "NARROWEST", 1)


def draw(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)


def assert_rounds(made, wanted):
    """Each row is within half a step of e4m3 of what it stands for, and uses the format's range."""
    assert made.rounded.dtype == FP8
    assert torch.equal(made.scale, made.scale.log2().round().exp2())
    got, wanted = made.rounded.float(), wanted.float() / made.scale[:, None]
    torch.testing.assert_close(got, wanted, rtol=2**-4 + 2**-8, atol=2**-10)
    largest = got.abs().amax(1)
    assert ((largest > 223) | (wanted.abs().amax(1) == 0)).all()


@pytest.mark.parametrize("rows", [0, 7])
def test_rows_in_eight_bits(rows):
    wide = draw(rows, 120) * torch.logspace(-6, 6, 120, device=DEVICE).to(torch.bfloat16)
    x = wide[:, 24:]
    x[3:4] = 0
    made = operand(x, Form.ROUNDED)
    assert made.exact is None
    assert_rounds(made, x)
    assert not made.rounded[3:4].float().any()
    both = operand(x, Form.ROUNDED | Form.EXACT)
    assert both.exact is x
    assert torch.equal(both.rounded.float(), made.rounded.float())
    assert operand(x, Form.EXACT) == Operand(x)


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_kernels_round_what_they_make(rows):
    """In 8 bits they make what they make exactly, and neither form depends on whether the other is wanted."""
    x, add, grad, skip = (draw(rows, 48, seed=seed) for seed in range(4))
    weight, gate_up, d_out = draw(48), draw(rows, 160), draw(rows, 80)

    def norm(form):
        return kernels.norm(x, weight, EPS, add, form)[1]

    def norm_again(form):
        total, _, rstd = kernels.norm(x, weight, EPS, add)
        return kernels.norm_backward(total, rstd, weight, grad, skip, form)[1]

    def act(form):
        return kernels.swiglu(gate_up, form)

    def act_again(form):
        derivative = Form.ROUNDED if Form.ROUNDED in form else Form.EXACT
        return kernels.swiglu_backward_(gate_up.clone(), d_out.clone(), derivative, form)[1]

    def d_gate_up(form):
        return kernels.swiglu_backward_(gate_up.clone(), d_out.clone(), form, Form.NONE)[0]

    for function in (norm, norm_again, act, act_again, d_gate_up):
        alone, rounded, both = (function(form) for form in (Form.EXACT, Form.ROUNDED, Form.EXACT | Form.ROUNDED))
        assert alone.scale is rounded.exact is None
        assert torch.equal(both.exact, alone.exact), function.__name__
        assert torch.equal(both.rounded.float(), rounded.rounded.float()), function.__name__
        assert torch.equal(both.scale, rounded.scale)
        assert_rounds(rounded, alone.exact)


def test_transposing_and_appending_zeros():
    x = operand(draw(21, 70), Form.ROUNDED)
    plain = transposed(x.rounded)
    assert plain.shape == (70, 32)
    assert torch.equal(plain[:, :21].float(), x.rounded.float().t())
    assert not plain[:, 21:].float().any()
    factor = 2.0 ** -torch.arange(21, device=DEVICE)
    moved = transposed(x.rounded, factor)
    want = (x.rounded.float() * factor[:, None]).to(FP8).float().t()
    assert torch.equal(moved[:, :21].float(), want)
    part = transposed(x.rounded[:, 16:48], factor)
    assert torch.equal(part.float(), moved[16:48].float())
    assert transposed(x.rounded[:0]).shape == (70, 0)


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_two_scales_of_a_row_are_one_factor(rows):
    a, b = (2.0 ** torch.randint(-40, 3, (rows,), device=DEVICE) for _ in range(2))
    factor, largest = contributions(a, b)
    assert (factor <= 1).all()
    torch.testing.assert_close(factor.double() * largest.double(), a.double() * b.double(), rtol=0, atol=0)


def relative_error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("outlier", [1, 4096])
def test_products_in_eight_bits_are_near_exact_ones(laid_out, outlier):
    """One token's activations are far greater than all others', as first tokens' are in trained models."""
    weights = [torch.nn.Parameter(draw(rows, 64, seed=rows), requires_grad=False) for rows in (32, 16)]
    if laid_out:
        lay_side_by_side(weights)
    x, dy = draw(50, 64), draw(50, 48)
    x[7] *= outlier
    dy[7] /= outlier
    rounded = operand(x, Form.ROUNDED), operand(dy, Form.ROUNDED)
    exact = Operand(x.double()), Operand(dy.double())
    in_double = [w.double() for w in weights]
    assert 1e-3 < relative_error(project(rounded[0], weights), project(exact[0], in_double)) < 0.05
    assert 1e-3 < relative_error(project_backward(rounded[1], weights), project_backward(exact[1], in_double)) < 0.05
    wanted = torch.cat(weight_gradients(in_double, exact[1], exact[0]))
    for as_it_comes in (False, True):  # an operand that is exact, to be rounded as it is transposed
        operands = rounded[1], rounded[0]._replace(exact=x, rounded=None) if as_it_comes else rounded[0]
        assert 1e-3 < relative_error(torch.cat(weight_gradients(weights, *operands)), wanted) < 0.05
    totals = torch.ones(48, 64, device=DEVICE)
    for weight, total in zip(weights, totals.split([32, 16]), strict=True):
        accumulate_into(weight, total)
    assert weight_gradients(weights, rounded[1], rounded[0]) == [None, None]
    assert relative_error(totals - 1, wanted) < 0.05


@pytest.mark.parametrize("values", [False, True])
def test_weights_are_rounded_anew_when_they_were_written_to(values):
    weights = [torch.nn.Parameter(draw(32, 64, seed=seed)) for seed in range(2)]
    lay_side_by_side(weights)
    x = operand(draw(9, 64), Form.ROUNDED)
    keep_in_eight_bits(weights, values=values)
    with torch.no_grad():
        first = project(x, weights)
        weights[1].data.mul_(2)  # behind autograd's back
        if values:
            assert torch.equal(project(x, weights), first)
        optimizer = AdamW(weights, [None, None], AdamWSettings(0.9, 0.95, 1e-8, 0.0), torch.bfloat16)
        optimizer.step([torch.ones_like(w) for w in weights], 0.5, 1.0)
        kept = project(x, weights), project_backward(x, [w.t().contiguous() for w in weights][:1])
        fresh = [torch.nn.Parameter(w.detach().clone()) for w in weights]
        lay_side_by_side(fresh)
        assert torch.equal(kept[0], project(x, fresh))
        assert not torch.equal(kept[0], first)


def neighbours(x):
    """The numbers of e4m3 at and below |x|, and at and above it, fp32."""
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    place = torch.searchsorted(numbers, x.abs().contiguous())
    above = numbers[place]
    return torch.where(above == x.abs(), above, numbers[(place - 1).clamp(min=0)]), above


def test_weights_are_rounded_to_either_neighbour_and_right_on_average():
    weight = (draw(16, 64).cpu() * torch.logspace(-5, 0, 64)).bfloat16()
    weight[0, 0], weight[1, :7] = 0, torch.tensor([448, -448, 416, 2.0**-6, -(2.0**-9), 1.125, 2.0**-11])
    below, above = neighbours(weight.float())
    made = torch.stack(
        [RoundedWeight(weight.to(DEVICE)).refresh(0, Draw(salt)).by_row()[0].float().cpu() for salt in range(2000)]
    )
    assert ((made.abs() == below) | (made.abs() == above)).all()
    assert ((made == 0) | (made.sign() == weight.sign())).all()
    off = (made.mean(0) - weight.float()) / (above - below).clamp(min=2.0**-9)
    assert off.abs().max() < 5 * 0.5 / 2000**0.5  # five standard deviations of the mean of coin tosses
    assert off.mean().abs() < 5 * 0.5 / (2000 * off.numel()) ** 0.5
    odds = (weight.abs().float() - below) / (above - below)
    tosses = made.flatten(1)[:, ((odds > 0.2) & (odds < 0.8)).flatten()]
    pairs = (tosses - tosses.mean(0)) / tosses.std(0)
    assert ((pairs[:, 1:] * pairs[:, :-1]).mean(0).abs() < 0.12).all()  # next to each other they know nothing of each other
    assert ((pairs[1:] * pairs[:-1]).mean(0).abs() < 0.12).all()  # nor from step to step


@pytest.mark.parametrize("salt", [1, 0x7FFFFFFF])
def test_a_weight_is_rounded_by_the_same_bits_wherever_and_however_it_lies(salt):
    """Kept or not, alone or beside others, as it lies or transposed, by a kernel or by plain PyTorch."""
    block = draw(48, 80)
    wanted = RoundedWeight(block.cpu()).refresh(0, Draw(salt)).by_row()[0].float()
    assert not torch.equal(wanted, RoundedWeight(block.cpu()).refresh(0, Draw(salt - 1)).by_row()[0].float())
    for keep in (False, True):
        made = RoundedWeight(block, keep=keep).refresh(0, Draw(salt))
        assert torch.equal(made.by_row()[0].float().cpu(), wanted)
        assert torch.equal(made.by_column()[0].float().cpu(), wanted.t())
    part = RoundedWeight(block[32:]).refresh(0, Draw(salt, 32 * 80))
    large = wanted[32:].abs() > 2  # smaller ones may be smaller than normal numbers under the scale of the block
    assert torch.equal((part.by_row()[0].float() * part.scales[0]).cpu()[large], (wanted[32:] * made.scales[0].cpu())[large])


def test_weights_are_rounded_anew_in_each_step_and_alike_within_one(tmp_path):
    """A run that resumes draws as the one before it did, on ranks that keep rounded weights or fetch them for each use."""
    folder = save_tiny(tmp_path, hidden_size=64, intermediate_size=96, initializer_range=0.1)
    batch, losses = batch_of(conversations([30, 50, 20])).to(DEVICE), {}
    for kept in (True, False):
        model = load_model(folder, ModelOptions("bf16", fp8=True), DEVICE)
        if kept:
            lay_out(model)
            keep_rounded(model, None)
        for step in (5, 5, 6, 5):
            model.step = step
            losses.setdefault((kept, step), []).append(float(sum_loss(model, batch).detach()))
    of_one, of_next = losses[True, 5], losses[True, 6][0]
    assert len(set(of_one)) == 1
    assert abs(of_next / of_one[0] - 1) > 1e-6
    assert losses[False, 5] == pytest.approx(of_one, rel=1e-7)
    assert losses[False, 6][0] == pytest.approx(of_next, rel=1e-7)


LORA = LoraOptions(rank=3, alpha=5, dropout=0.0, targets="all-linear")


def gradient(folder, batch, **options):
    """All gradients end to end, and which parameters have one."""
    torch.manual_seed(0)
    model = load_model(folder, ModelOptions("bf16", **options), DEVICE)
    for seed, (name, param) in enumerate(model.named_parameters()):
        if "lora_" in name:
            param.data = draw(*param.shape, seed=seed, dtype=param.dtype) * 0.02
    lay_out(model)
    keep_rounded(model, None)
    sum_loss(model, batch, 1 / len(batch.targets)).backward()
    found = {name: param.grad.flatten() for name, param in model.named_parameters() if param.grad is not None}
    return torch.cat(list(found.values())), list(found)


@pytest.mark.parametrize(
    ("family", "checkpointing", "lora"),
    [
        ("qwen3", "auto", None),
        ("qwen3", "full", None),
        ("qwen3", "off", None),
        ("qwen2", "off", None),
        ("qwen3", "auto", LORA),
        ("qwen2", "full", LORA),
    ],
)
def test_gradients_in_eight_bits_are_near_exact_ones(tmp_path, family, checkpointing, lora, monkeypatch):
    """Of a whole model: with two products in 8 bits, and with all three, which differs in the gradients of weights alone."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.02}
    folder, batch = save_tiny(tmp_path, family, **sizes), batch_of(conversations([30, 50, 20])).to(DEVICE)
    how = {"activation_checkpointing": checkpointing, "lora": lora}
    exact, of = gradient(folder, batch, **how)
    two, of_two = gradient(folder, batch, fp8=True, **how)
    monkeypatch.setattr(linear, "MANY", 1)
    three, of_three = gradient(folder, batch, fp8=True, **how)
    assert of == of_two == of_three
    assert 1e-3 < relative_error(two, exact) < 0.15
    assert 1e-3 < relative_error(three, exact) < 0.15
    assert relative_error(three, two) < 0.04
    assert (relative_error(three, two) > 1e-3) == (lora is None)


def test_layers_that_gain_nothing_in_eight_bits_keep_sixteen_and_start_up_says_so(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, hidden_size=64, intermediate_size=96)
    batch = batch_of(conversations([30, 50, 20])).to(DEVICE)
    losses, lines = [], []
    for narrowest, fp8 in ((65, True), (64, True), (64, False)):
        monkeypatch.setattr(linear, "NARROWEST", narrowest)
        model = load_model(folder, ModelOptions("bf16", fp8=fp8), DEVICE)
        losses.append(float(sum_loss(model, batch).detach()))
        lines.append(describe(model))
    assert losses[0] == losses[2] != losses[1]
    assert "products in 16 bits, as layers of 64 features gain nothing in 8" in lines[0]
    assert "products in 8 bits" in lines[1]
    assert "bits" not in lines[2]


def test_a_held_out_loss_is_that_of_exact_products(tmp_path):
    folder = save_tiny(tmp_path, hidden_size=64, intermediate_size=96, initializer_range=0.1)
    batch = batch_of(conversations([30, 50, 20])).to(DEVICE)
    exact, rounded = (load_model(folder, ModelOptions("bf16", fp8=fp8), DEVICE) for fp8 in (False, True))
    assert sum_loss(exact, batch) != sum_loss(rounded, batch)
    with torch.no_grad():
        assert sum_loss(exact, batch) == sum_loss(rounded, batch)
