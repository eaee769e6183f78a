"""PyTorch's operators that are not public are still there, with the arguments that we give them, and do what we take them for."""

from __future__ import annotations

import pytest
import torch
from talaria.train.kernels import torch_internals

LENGTHS = "cum_seq_q cum_seq_k max_q max_k"
WINDOW = "scale window_size_left window_size_right"


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [
        ("_flash_attention_forward", f"query key value {LENGTHS} dropout_p is_causal return_debug_mask {WINDOW}"),
        (
            "_flash_attention_backward",
            f"grad_out query key value out logsumexp {LENGTHS} dropout_p is_causal rng_state unused {WINDOW}",
        ),
        ("embedding_dense_backward", "grad_output indices num_weights padding_idx scale_grad_by_freq"),
        ("_scaled_mm", "self mat2 scale_a scale_b out_dtype use_fast_accum"),
        ("_assert_async", "self"),
    ],
)
def test_the_operators_take_what_we_give_them(operator: str, wanted: str) -> None:
    schema = getattr(torch.ops.aten, operator).default._schema
    names = [argument.name for argument in schema.arguments]
    assert [name for name in wanted.split() if name not in names] == []
    assert [name for name in names if name in wanted.split()] == wanted.split(), "their order has changed"


def test_every_row_of_a_table_gets_its_gradient() -> None:
    ids, grad = torch.tensor([0, 2, 2]), torch.tensor([[1.0], [2.0], [4.0]])
    assert torch_internals.embedding_gradient(grad, ids, 3).tolist() == [[1.0], [0.0], [6.0]]
    often = torch_internals.embedding_gradient(torch.ones(1000, 1, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.long), 1)
    assert (often.item(), often.dtype) == (1000, torch.bfloat16)


def test_a_false_condition_fails() -> None:
    torch_internals.assert_on_device(torch.tensor(True))
    with pytest.raises(RuntimeError):
        torch_internals.assert_on_device(torch.tensor(False))
