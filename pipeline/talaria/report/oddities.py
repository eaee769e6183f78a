"""Data quality checks of conversations, computed on whole columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Turns:
    """A batch of flattened conversations: turn j of row i is element offsets[i] + j."""

    offsets: npt.NDArray[np.int64]
    role: pa.Array
    content: pa.Array

    def is_role(self, role: str) -> Mask:
        mask: Mask = pc.equal(self.role, role).to_numpy(zero_copy_only=False)
        return mask

    @cached_property
    def text(self) -> bytes:
        """The contents' buffer: at least all their text, end to end."""
        data = self.content.buffers()[2]
        return data.to_pybytes() if data else b""

    def any(self, turns: Mask) -> Mask:
        """Return the rows in which any turn is true."""
        total = np.concatenate([[0], np.cumsum(turns)])
        found: Mask = total[self.offsets[1:]] > total[self.offsets[:-1]]
        return found


def flatten(messages: pa.Array) -> Turns:
    turns = messages.flatten()
    lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    role, content = (pc.struct_field(turns, name).cast(pa.large_string()) for name in ("role", "content"))
    if turns.type.get_field_index("tool_calls") >= 0:  # what an answer says that calls a tool is the call
        calls = pc.struct_field(turns, "tool_calls").cast(pa.large_string())
        content = pc.if_else(pc.fill_null(pc.equal(content, ""), True), calls, content)
    return Turns(offsets, role, pc.fill_null(content, ""))


@dataclass(frozen=True)
class Oddity:
    meaning: str
    find: Callable[[Turns], Mask]


def _edge(turns: Turns, role: str, places: npt.NDArray[Any]) -> Mask:
    """Rows whose turn at `places` has the role; rows without turns do not."""
    filled = np.diff(turns.offsets) > 0
    found = np.zeros(len(filled), np.bool_)
    found[filled] = turns.is_role(role)[places[filled]]
    return found


def _answer_first(turns: Turns) -> Mask:
    questions = np.concatenate([[0], np.cumsum(turns.is_role("user"))])
    before = questions[:-1] - np.repeat(questions[turns.offsets[:-1]], np.diff(turns.offsets))
    return turns.any(turns.is_role("assistant") & (before == 0))


def _ends_unanswered(turns: Turns) -> Mask:
    return turns.any(turns.is_role("assistant")) & ~_edge(turns, "assistant", turns.offsets[1:] - 1)


def _no_answer(turns: Turns) -> Mask:
    return ~turns.any(turns.is_role("assistant"))


def _blank_answer(turns: Turns) -> Mask:
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(turns.content)), 0).to_numpy(zero_copy_only=False)
    return turns.any(blank & turns.is_role("assistant"))


def _same_role_twice(turns: Turns) -> Mask:
    codes = turns.role.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeats = np.zeros(len(codes), np.bool_)
    repeats[1:] = codes[1:] == codes[:-1]
    firsts = turns.offsets[:-1]
    repeats[firsts[firsts < len(codes)]] = False
    return turns.any(repeats)


def _contains(*texts: str) -> Callable[[Turns], Mask]:
    def find(turns: Turns) -> Mask:
        found = np.zeros(len(turns.content), np.bool_)
        for text in texts:
            if text.encode() not in turns.text:  # ten times as fast as to ask for each content
                continue
            found |= pc.match_substring(turns.content, text).to_numpy(zero_copy_only=False)
        return turns.any(found)

    return find


ODDITIES: dict[str, Oddity] = {
    "no_answer": Oddity("no assistant message: nothing to learn", _no_answer),
    "answer_first": Oddity("an assistant message before any question", _answer_first),
    "ends_unanswered": Oddity("the last message is not the assistant's", _ends_unanswered),
    "blank_answer": Oddity("an assistant message is blank", _blank_answer),
    "same_role_twice": Oddity("two messages of one role in a row", _same_role_twice),
    "control_text": Oddity(
        "text that looks like a control token; it stays text", _contains("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    ),
    "broken_text": Oddity("a NUL or a replacement character: text that was decoded wrongly", _contains("\0", "\ufffd")),
}
