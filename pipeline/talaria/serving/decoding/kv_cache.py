"""Keys and values of answers that begin and end at different times: rows join and leave, all ending at the same slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_GROWTH = 64
"""Slots by which a layer grows, so that a step writes its slot in place and copies nothing."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer: keys and values [rows, heads, slots, width], the newest token of every row in the last slot.

    It keeps all tokens, also where the model's attention has a window: the masks of transformers see to that.
    """

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, ...]
    """Keys and values with free slots behind them, which both begin."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add slots at the end and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._put(key_states, value_states)
            return self.keys, self.values
        used, added = self.keys.shape[2], key_states.shape[2]
        if used + added > self._room[0].shape[2]:
            self._room = tuple(pad(held, (0, 0, 0, added + _GROWTH)) for held in (self.keys, self.values))
        for held, new in zip(self._room, (key_states, value_states), strict=True):
            held[:, :, used : used + added] = new
        self.keys, self.values = (held[:, :, : used + added] for held in self._room)
        return self.keys, self.values

    def keep(self, rows: Tensor, first_slot: int) -> None:
        """Keep these rows, and their slots from `first_slot` on."""
        self._put(*(held[rows, :, first_slot:].contiguous() for held in (self.keys, self.values)))

    def join(self, other: GrowingLayer) -> None:
        """Add the rows of another layer; the shorter of the two gets empty slots at its beginning."""
        width = max(self.keys.shape[2], other.keys.shape[2])
        pairs = ((self.keys, other.keys), (self.values, other.values))
        self._put(*(torch.cat([pad(held, (0, 0, width - held.shape[2], 0)) for held in pair]) for pair in pairs))

    def _put(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._room = (keys, values)


def empty_cache() -> Any:
    """A cache of GrowingLayers, one for each layer of the model that fills it."""
    return Cache(layer_class_to_replicate=GrowingLayer)
