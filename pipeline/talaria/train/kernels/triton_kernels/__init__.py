"""Triton kernels for what surrounds the matrix products of a decoder layer. Each has a plain twin in elementwise.py,
eight_bits.py or adamw.py.

All of them move each byte once and do their arithmetic in fp32; a wide row that is rounded to 8 bits is read twice.
Row counts are not specialised, so a new micro-batch size compiles nothing.
"""

from talaria.train.kernels.triton_kernels.fp8 import contributions, quantize, round_into, transposed
from talaria.train.kernels.triton_kernels.loss import softmax_nll_
from talaria.train.kernels.triton_kernels.mlp import swiglu, swiglu_backward_
from talaria.train.kernels.triton_kernels.norms import norm, norm_backward
from talaria.train.kernels.triton_kernels.optim import AdamWTable, adamw_, adamw_many_
from talaria.train.kernels.triton_kernels.rotary import rope, rope_backward
from talaria.train.kernels.triton_kernels.sums import add_rows_, column_sums

__all__ = [
    "AdamWTable",
    "adamw_",
    "adamw_many_",
    "add_rows_",
    "column_sums",
    "contributions",
    "norm",
    "norm_backward",
    "quantize",
    "rope",
    "rope_backward",
    "round_into",
    "softmax_nll_",
    "swiglu",
    "swiglu_backward_",
    "transposed",
]
