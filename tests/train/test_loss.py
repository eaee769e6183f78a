"""The chunked head and loss equal F.cross_entropy on full logits, gradients included."""

import pytest
import torch
from talaria.common.errors import ConfigError
from talaria.train.model.loss import UserLoss, dft_, linear_cross_entropy
from torch.nn.functional import cross_entropy

VOCAB, WIDTH = 97, 16


def plain_linear_cross_entropy(hidden, weight, targets, weights=None):
    """The reference: full logits, then the sum over rows of weights * NLL, in fp32."""
    nll = cross_entropy((hidden @ weight.t()).float(), targets, reduction="none")
    return (nll if weights is None else nll * weights).sum()


def inputs(rows: int, dtype: torch.dtype, weighted: bool, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (rows,), generator=draw)
    return hidden, weight, targets, torch.rand(rows, generator=draw) if weighted else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_equals_cross_entropy_on_full_logits(chunk, weighted):
    hidden, weight, targets, weights = inputs(33, torch.float32, weighted)
    expected = plain_linear_cross_entropy(hidden, weight, targets, weights)
    want = torch.autograd.grad(3.0 * expected, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, weights, chunk=chunk)
    got = torch.autograd.grad(3.0 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


def test_chunks_are_nearly_equal_and_what_a_kernel_reads_of_them_is_aligned():
    """An address of another multiple is another form of the kernel, which Triton would compile when it first comes."""
    seen = []

    def recorded(logits, targets, weights, want_grad):
        seen.append((len(logits), targets.data_ptr() % 16, weights.data_ptr() % 16))
        return torch.zeros(len(logits))

    for rows in (1, 4096, 4097, 4210, 8190, 8192, 8193, 12287):
        seen.clear()
        hidden, weight, targets, weights = inputs(rows, torch.float32, True)
        linear_cross_entropy(hidden, weight, targets, weights, loss=recorded)
        sizes = [size for size, *_ in seen]
        assert (sum(sizes), len(sizes)) == (rows, -(-rows // 4096))
        assert max(sizes) <= 4096
        assert max(sizes) - min(sizes) < 4 * len(sizes)
        assert {place for _, *places in seen for place in places} == {0}


def test_no_rows_give_zero_loss_and_zero_gradients():
    hidden, weight, targets, _ = inputs(0, torch.float32, False)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.shape == (0, WIDTH)
    assert torch.count_nonzero(weight.grad) == 0


def test_bf16_inputs_give_an_fp32_loss_near_the_exact_one():
    hidden, weight, targets, weights = inputs(64, torch.bfloat16, True)
    exact = plain_linear_cross_entropy(hidden.double(), weight.double(), targets, weights)
    want = torch.autograd.grad(exact, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, weights, chunk=16)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact.item()) / exact.item() < 1e-2
    loss.backward()
    for got, w in zip((hidden.grad, weight.grad), want, strict=True):
        assert got.dtype == torch.bfloat16
        assert ((got.float() - w.float()).norm() / w.float().norm()).item() < 1e-2


def test_frozen_head_gets_no_gradient_and_frozen_body_none():
    hidden, weight, targets, _ = inputs(9, torch.float32, False)
    (only_hidden,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    (only_weight,) = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, targets), weight)
    want = torch.autograd.grad(plain_linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    torch.testing.assert_close(only_hidden, want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(only_weight, want[1], rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    hidden, weight, targets, _ = inputs(8, torch.float32, False)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    torch.testing.assert_close(loss, plain_linear_cross_entropy(hidden * 1e4, weight, targets))


def dft(hidden, weight, targets, weights=None):
    """The same by autograd: NLL times the target's probability, through which nothing is differentiated."""
    nll = cross_entropy((hidden @ weight.t()).float(), targets, reduction="none")
    losses = nll * torch.exp(-nll).detach()
    return (losses if weights is None else losses * weights).sum()


def focal(logits, targets):
    nll = cross_entropy(logits, targets, reduction="none")
    return nll * (1 - torch.exp(-nll))


def focal_sum(hidden, weight, targets, weights=None):
    losses = focal((hidden @ weight.t()).float(), targets)
    return (losses if weights is None else losses * weights).sum()


@pytest.mark.parametrize(("loss", "reference"), [(dft_, dft), (UserLoss(focal, "mine:focal"), focal_sum)])
@pytest.mark.parametrize("weighted", [False, True])
def test_other_losses_and_their_gradients_equal_autograds(loss, reference, weighted):
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((23, 8), (31, 8)))
    targets = torch.randint(31, (23,), generator=generator)
    weights = torch.rand(23, generator=generator) if weighted else None
    got = linear_cross_entropy(hidden, weight, targets, weights, scale=0.5, chunk=7, loss=loss)
    want = 0.5 * reference(hidden, weight, targets, weights)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_loss_of_the_wrong_shape_is_refused():
    hidden, weight = torch.randn(5, 4), torch.randn(6, 4)
    with pytest.raises(ConfigError, match=r"mine:mean should return a loss per target, \(5,\), not \(\)"):
        linear_cross_entropy(hidden, weight, torch.zeros(5, dtype=torch.long), loss=UserLoss(cross_entropy, "mine:mean"))
