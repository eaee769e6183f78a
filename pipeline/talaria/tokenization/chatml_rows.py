"""Rows of the parquet to ids and masks by the ChatML rule, a random share of them also by its plain form, and compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import to_numpy
from talaria.common.errors import DataError
from talaria.config.schema import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.encoder import Encoded, EncodingMismatch, Mask, TokenBatch, encode, flatten
from talaria.tokenization.parquet_chunks import MessageRows
from talaria.tokenization.reasons import NOT_RENDERED
from talaria.tokenization.tokenizer import Ids, Loading

_NOTHING = ("", "[]", "null", "{}")


@dataclass(frozen=True)
class Sampled:
    """What the oracle makes of some rows."""

    rows: list[int]
    ids: Ids
    mask: Mask


class ChatmlRows:
    """Encodes rows; holds no state, so that threads can share it."""

    def __init__(self, parquet: Path, loading: Loading, config: Tokenize) -> None:
        self.parquet, self.config = parquet, config
        self._loading = loading
        self.source = chat.template(loading.oracle.bos_text)

    @property
    def facts(self) -> dict[str, Any]:
        """How the rows were encoded."""
        tokenizer = self._loading.tokenizer
        begins = {"begins_with": tokenizer.bos_text} if tokenizer.bos_text else {}
        return {"template": "chatml", **begins, "backend": tokenizer.backend, "fallback": tokenizer.fallback}

    control_tokens = r"<\|(im_start|im_end|endoftext)\|>"

    def sample(self, numbers: list[int], rows: MessageRows) -> Sampled:
        """These of the rows by the plain rule; needs no encoder, which may still be loading."""
        return Sampled(numbers, *self._by_the_oracle(rows.take(numbers).messages))

    def encode(self, rows: MessageRows, first_row: int, sampled: Sampled) -> Encoded:
        """Raises DataError where a row has something that plain ChatML does not render, unless such rows are dropped."""
        unusable = self._not_rendered(rows, first_row)
        messages = flatten(rows.messages, first_row, str(self.parquet), unusable)
        batch = encode(messages, self._loading.tokenizer, self.config.supervise_newline)
        counts = Counter(compared=self._compare(sampled, rows.messages, batch, unusable))
        counts[NOT_RENDERED] = int(np.count_nonzero(unusable))
        return Encoded(messages, batch, unusable, counts)

    def _not_rendered(self, rows: MessageRows, first_row: int) -> Mask:
        """Rows with tools, tool calls or reasoning, which plain ChatML has no place for."""
        found = np.zeros(len(rows.messages), np.bool_)
        if rows.tools is not None:
            found |= self._says_something(rows.tools, np.arange(len(rows.messages)), "tools", first_row)
        turns = rows.messages.flatten()
        of_row = to_numpy(pc.list_parent_indices(rows.messages)) if len(turns) else np.empty(0, np.int64)
        for name in ("tool_calls", *(() if self.config.reasoning == "drop" else ("reasoning_content",))):
            if turns.type.get_field_index(name) >= 0:
                found[of_row[self._says_something(pc.struct_field(turns, name), of_row, name, first_row)]] = True
        return found

    def _says_something(self, values: pa.Array, of_row: Any, name: str, first_row: int) -> Mask:
        if pa.types.is_null(values.type) or values.null_count == len(values):
            return np.zeros(len(values), np.bool_)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            nothing = pc.is_in(pc.utf8_trim_whitespace(values), pa.array(_NOTHING, values.type))
            said = to_numpy(pc.and_(values.is_valid(), pc.invert(nothing)))
        else:
            said = to_numpy(values.is_valid())
        if self.config.on_bad_row == "error" and said.any():
            row = first_row + int(of_row[np.argmax(said)])
            ignore = " or drop" if name == "reasoning_content" else ""
            raise DataError(
                f"{self.parquet}, row {row}: has {name}, which tokenize.template: chatml does not render; "
                f"set tokenize.template to own{ignore}, or tokenize.on_bad_row to drop."
            )
        return said

    def _by_the_oracle(self, column: pa.Array) -> tuple[Ids, Mask]:
        """Ids and mask of these conversations by the plain rule and Hugging Face's tokenizer, as the saved template renders."""
        oracle, newline = self._loading.oracle, self.config.supervise_newline
        rows = ([dict(message, content=message["content"] or "") for message in row or []] for row in column.to_pylist())
        segments = (part for messages in rows for part in chat.segments(messages, newline, oracle.bos_text))
        ids, mask = oracle.ids(segments, joined=True)
        return np.array(ids, np.int32), np.array(mask, np.bool_)

    def _compare(self, sampled: Sampled, column: pa.Array, batch: TokenBatch, unusable: Mask) -> int:
        """How many rows were compared. Raises EncodingMismatch that names the row where an id or a mask differs."""
        stretches = [slice(*batch.offsets[row : row + 2]) for row in sampled.rows]
        ids, mask = (np.concatenate([values[stretch] for stretch in stretches]) for values in (batch.ids, batch.mask))
        if np.array_equal(ids, sampled.ids) and np.array_equal(mask, sampled.mask):
            return len(stretches)
        for row, stretch in zip(sampled.rows, stretches, strict=True):
            ids, mask = self._by_the_oracle(column[row : row + 1])
            if not (np.array_equal(batch.ids[stretch], ids) and np.array_equal(batch.mask[stretch], mask)):
                raise EncodingMismatch(
                    f"{self.parquet}, row {batch.rows[row]}: the encoder's ids differ from Hugging Face's; "
                    "set tokenize.backend to tokenizers and report this row."
                )
        raise AssertionError("conversations differ together but not one by one")
