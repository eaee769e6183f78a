"""Measure a step: floating-point operations, the device's peak, and a checksum of the trained rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from talaria.train.model.activation_memory import head_width

if TYPE_CHECKING:
    from talaria.train.model.causal_lm import CausalLM

PEAK_BF16_FLOPS = {
    # Dense bf16, from the makers' data sheets; the first name that the device's begins with or contains counts.
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bf16 FLOP/s of the device, or None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of training, forward and backward.

    A token costs 6 per weight it is multiplied with (2 forward, 2 for the input's gradient, 2 for the weight's; 4 where the
    weight is frozen), and a pair of tokens 12 per layer and head width. Attention is causal and stays inside a conversation: n
    tokens make n * (n + 1) / 2 pairs. Recomputation is not counted. (Narayanan et al., 2021, appendix; Chowdhery et al., 2022,
    appendix B.)
    """

    per_token: float
    attention_width: float
    """layers * heads * head_dim"""

    def of(self, lengths: npt.NDArray[np.int64]) -> float:
        n = lengths.astype(np.float64)
        return self.per_token * float(n.sum()) + 6.0 * self.attention_width * float((n * (n + 1)).sum())

    @property
    def quadratic(self) -> float:
        """Quadratic part of the cost: n tokens cost n + quadratic * n^2, in units of one token."""
        return 6.0 * self.attention_width / self.per_token


def flop_count(model: CausalLM) -> FlopCount:
    """Count each matrix except the embedding table, which is looked up, unless it is the head as well.

    Of a layer's experts, stacked in one tensor, a token is multiplied with `num_experts_per_tok`.
    """
    core = model.core
    table, head = core.get_input_embeddings().weight, core.get_output_embeddings().weight
    config = core.config
    matrices = [param for param in model.parameters() if param.ndim >= 2 and (param is not table or param is head)]
    sizes = [param.numel() * (config.num_experts_per_tok / len(param) if param.ndim == 3 else 1.0) for param in matrices]
    return FlopCount(
        per_token=float(sum(size * (6 if param.requires_grad else 4) for param, size in zip(matrices, sizes, strict=True))),
        attention_width=float(config.num_hidden_layers * config.num_attention_heads * head_width(config)),
    )


def row_checksum(rows: npt.NDArray[np.int64]) -> int:
    """Sum a 32-bit hash over rows: the same rows give the same number in any order or split."""
    x = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((x >> np.uint64(32)).sum())
