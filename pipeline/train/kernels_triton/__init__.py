"""Triton kernels for what surrounds the matrix products of a decoder layer. Each has a plain twin in kernels.py or optim.py.

All of them move each byte once and do their arithmetic in fp32. Row counts are not specialised, so a new micro-batch size
compiles nothing.
"""

from pipeline.train.kernels_triton.fp8 import quantize, quantize_transposed
from pipeline.train.kernels_triton.loss import softmax_nll_
from pipeline.train.kernels_triton.mlp import swiglu, swiglu_backward_
from pipeline.train.kernels_triton.norms import norm, norm_backward
from pipeline.train.kernels_triton.optim import adamw_
from pipeline.train.kernels_triton.rotary import rope, rope_backward
from pipeline.train.kernels_triton.sums import add_rows_

__all__ = [
    "adamw_",
    "add_rows_",
    "norm",
    "norm_backward",
    "quantize",
    "quantize_transposed",
    "rope",
    "rope_backward",
    "softmax_nll_",
    "swiglu",
    "swiglu_backward_",
]
