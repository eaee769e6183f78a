"""Rows of the parquet to ids and masks by the ChatML rule; a sample is compared with its plain form and with transformers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import to_numpy
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.comparison.audit import Candidate
from talaria.tokenization.comparison.reloaded import Reloaded
from talaria.tokenization.encoder import Encoded, EncodingMismatch, Mask, encode, flatten
from talaria.tokenization.loading import Loading
from talaria.tokenization.parquet_chunks import MessageRows
from talaria.tokenization.reasons import NOT_RENDERED
from talaria.tokenization.tokenizer import Ids, Offsets, begins_with_line_break, flat

_NOTHING = ("", "[]", "null", "{}")


class ChatmlRows:
    """Encodes rows; holds no state, so that threads can share it. `compare` is for one thread."""

    def __init__(self, parquet: Path, loading: Loading, config: Tokenize, source: str, reloaded: Reloaded) -> None:
        """`source`: the template that is saved. `reloaded`: the folder that is saved with it."""
        self.parquet, self.config = parquet, config
        self._loading = loading
        self.source, self.reloaded = source, reloaded
        self._controls = re.compile("|".join(re.escape(text) for text, token in loading.added.items() if token.special))

    @property
    def facts(self) -> dict[str, Any]:
        """How the rows were encoded."""
        tokenizer = self._loading.tokenizer
        begins = {"begins_with": tokenizer.bos_text} if tokenizer.bos_text else {}
        return {"template": "chatml", **begins, "backend": tokenizer.backend, "fallback": tokenizer.fallback}

    day = variables = None
    holds_the_lock = False
    control_tokens = r"<\|(im_start|im_end|endoftext)\|>"

    def encode(self, rows: MessageRows, first_row: int) -> Encoded:
        """Raises DataError where a row has something that plain ChatML does not render, unless such rows are dropped."""
        unusable = not_rendered(rows, first_row, str(self.parquet), self.config)
        messages = flatten(rows.messages, first_row, str(self.parquet), unusable)
        batch = encode(messages, self._loading.tokenizer, self.config.supervise_newline)
        return Encoded(messages, batch, unusable, Counter({NOT_RENDERED: int(np.count_nonzero(unusable))}))

    def compare(self, candidates: Sequence[Candidate]) -> None:
        """Compare rows' ids and masks with the plain rule's, and their ids with those of the saved folder in transformers.

        Raises EncodingMismatch that names the row.
        """
        conversations = [
            [dict(message, content=message["content"] or "") for message in candidate.rows.messages[0].as_py()]
            for candidate in candidates
        ]
        plain = [[{name: message[name] for name in ("role", "content")} for message in found] for found in conversations]
        for candidate, messages, bare, theirs in zip(candidates, conversations, plain, self.reloaded.ids(plain), strict=True):
            self._compare(candidate, messages, bare, theirs)

    def _compare(self, candidate: Candidate, messages: chat.Conversation, plain: chat.Conversation, theirs: list[int]) -> None:
        where, newline = f"{self.parquet}, row {candidate.number}", self.config.supervise_newline
        ids, mask = candidate.ids.tolist(), candidate.mask.tolist()
        segments = list(chat.segments(messages, newline, self._loading.bos_text))
        if (ids, mask) != self._loading.tokenizer.ids(segments):
            raise EncodingMismatch(f"{where}: its ids or loss mask differ from the plain rule's; report this row.")
        if ids == theirs:
            return
        text = "".join(segment.text for segment in segments)
        said = "".join(segment.text for segment in segments if not segment.control)
        may_differ = self._controls.search(said) or any(begins_with_line_break(message) for message in messages)
        theirs_alone = replace(self._loading.tokenizer, encode=self._encode_by_transformers)
        if not may_differ or ids != theirs_alone.ids(segments, joined=True)[0] or text != self.reloaded.text(plain):
            raise EncodingMismatch(
                f"{where}: the encoder's ids differ from Hugging Face's for the saved template; "
                "set tokenize.backend to tokenizers and report this row."
            )

    def _encode_by_transformers(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        return flat(self.reloaded.pieces(texts))


def not_rendered(rows: MessageRows, first_row: int, source: str, config: Tokenize) -> Mask:
    """Rows with tools, tool calls or reasoning, which plain ChatML has no place for.

    Raises DataError for the first of them, counted from `first_row` in `source`, unless such rows are dropped.
    """
    found = np.zeros(len(rows.messages), np.bool_)
    for name, values, of_row in _fields(rows, config):
        said = _says_something(values)
        if config.on_bad_row == "error" and said.any():
            row = first_row + int(of_row[np.argmax(said)])
            drop = ", tokenize.reasoning to drop" if name == "reasoning_content" else ""
            raise DataError(
                f"{source}, row {row}: has {name}, which tokenize.template: chatml does not render; "
                f"set tokenize.template to own{drop}, or tokenize.on_bad_row to drop."
            )
        found[of_row[said]] = True
    return found


def _fields(rows: MessageRows, config: Tokenize) -> Iterator[tuple[str, pa.Array, Any]]:
    """Each field without a place: its name, its values, and the row of each value."""
    if rows.tools is not None:
        yield "tools", rows.tools, np.arange(len(rows.tools))
    turns = rows.messages.flatten()
    of_row = to_numpy(pc.list_parent_indices(rows.messages)) if len(turns) else np.empty(0, np.int64)
    for name in ("tool_calls", *(() if config.reasoning == "drop" else ("reasoning_content",))):
        if turns.type.get_field_index(name) >= 0:
            yield name, pc.struct_field(turns, name), of_row


def _says_something(values: pa.Array) -> Mask:
    if pa.types.is_null(values.type) or values.null_count == len(values):
        return np.zeros(len(values), np.bool_)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        nothing = pc.is_in(pc.utf8_trim_whitespace(values), pa.array(_NOTHING, values.type))
        return to_numpy(pc.and_(values.is_valid(), pc.invert(nothing)))
    return to_numpy(values.is_valid())
