"""Greedy decoding on a GPU: a key-value cache of fixed size, and one step of all layers captured as a CUDA graph.

transformers' `generate` launches every kernel of every layer anew for each token, copies the cache to make it one token longer
and repeats keys and values for each group of query heads. Here a step is one launch, a token is written into its place, and the
query heads that share a key are the rows of one product. The model stays transformers' own, and so do its numbers but for the
order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from talaria.train.kernels.decoder_layer import FAMILIES

NAME = "talaria_grouped"
"""Under which transformers' AttentionInterface knows `attend`."""
_EAGER_STEPS = 2
"""Steps before the capture: libraries choose their kernels and workspaces in them."""
_CHECK_EVERY = 16
"""Steps between two looks at whether every answer has ended; each look waits for the GPU."""


def can_decode(hf: Any) -> bool:
    """Whether a model's layers all attend to everything before a token, without more than a scale."""
    layer_types = getattr(hf.config, "layer_types", None) or ()
    windowed = "sliding_attention" in layer_types or (hf.config.model_type == "mistral" and hf.config.sliding_window)
    return hf.config.model_type in FAMILIES and not windowed


@torch.no_grad()
def decode(hf: Any, ids: Tensor, mask: Tensor, *, ends: Sequence[int], max_new_tokens: int) -> list[list[int]]:
    """Return up to `max_new_tokens` greedy tokens of each row, the first of `ends` and whatever follows it included.

    ids, mask: int64[B, P], padded on the left; mask is 0 on padding.
    """
    from transformers import StaticCache

    _use_grouped_attention(hf)
    rows, width = ids.shape
    slots = -(-(width + max_new_tokens) // 16) * 16  # attention kernels want rows of a mask aligned
    cache = StaticCache(config=hf.config, max_cache_len=slots)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = hf(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
    state = _State(
        token=out.logits[:, -1].argmax(-1, keepdim=True),
        place=places[:, -1:] + 1,
        slot=torch.tensor([width], device=ids.device),
        visible=pad(mask.bool(), (0, slots - width))[:, None, None],
    )
    step = _captured(lambda: state.advance(hf, cache), hf.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
    stops = torch.tensor(list(ends), device=ids.device)
    tokens = [state.token.clone()]
    for count in range(1, max_new_tokens):
        ended |= torch.isin(tokens[-1][:, 0], stops)
        if count % _CHECK_EVERY == 0 and bool(ended.all()):
            break
        step()
        tokens.append(state.token.clone())
    generated: list[list[int]] = torch.cat(tokens, dim=1).tolist()
    return generated


class _State:
    """What a step reads and writes in place. token, place: int64[B, 1]; slot: int64[1]; visible: bool[B, 1, 1, slots]."""

    def __init__(self, token: Tensor, place: Tensor, slot: Tensor, visible: Tensor) -> None:
        self.token, self.place, self.slot, self.visible = token, place, slot, visible

    def advance(self, hf: Any, cache: Any) -> None:
        """Feed the newest token and put the next one in its place."""
        self.visible.index_fill_(3, self.slot, True)
        out = hf(
            input_ids=self.token,
            attention_mask=self.visible,
            position_ids=self.place,
            past_key_values=cache,
            use_cache=True,
        )
        self.token.copy_(out.logits[:, -1].argmax(-1, keepdim=True))
        self.place.add_(1)
        self.slot.add_(1)


def _captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A step that runs as it is at first, and as a CUDA graph from then on; on the CPU as it is always."""
    if device.type != "cuda":
        return step
    graph: torch.cuda.CUDAGraph | None = None
    stream, done = torch.cuda.Stream(device), 0  # type: ignore[no-untyped-call]

    def run() -> None:
        nonlocal graph, done
        done += 1
        if done <= _EAGER_STEPS:
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream(device).wait_stream(stream)
            return
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        graph.replay()

    return run


def _use_grouped_attention(hf: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    hf.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call. query: [B, heads, n, d]; key, value: [B, kv_heads, slots, d]; returns [B, n, heads, d]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, length, width = query.shape
    if length > 1:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return out, None
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, width), None
