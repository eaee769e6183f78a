"""The tokenizer of a folder: its control tokens, and text to ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Backend = Literal["auto", "fastokens", "tokenizers"]

LINE_BREAK = re.compile(r"\s*[\r\n]")
"""Begins text that would merge with a line break before it."""


def begins_with_line_break(message: chat.Message) -> bool:
    """Whether this is an answer whose text would merge with its header's line break."""
    return message["role"] == chat.ASSISTANT and LINE_BREAK.match(message["content"]) is not None


class Encode(Protocol):
    def __call__(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """Ids of all texts end to end, and the len(texts) + 1 places where one ends and the next begins.

        Adds no token, and leaves text that looks like a special token text.
        """


@dataclass(frozen=True)
class Tokenizer:
    """What encoding ChatML needs of a tokenizer folder."""

    folder: Path
    bos: Ids
    """Ids that the tokenizer puts before a text; none with most."""
    bos_text: str
    start: int
    end: int
    newline: Ids
    header: Ids
    """Ids of "assistant\\n", the part of an answer that belongs to the prompt."""
    encode: Encode
    backend: str
    fallback: str | None = None
    """Why fastokens could not be used, where it was asked for."""

    def ids(self, segments: Iterable[chat.Segment], joined: bool = False) -> tuple[list[int], list[bool]]:
        """Ids and loss mask, segment by segment: the plain form of what encoder.py does with arrays.

        `joined`: text that the chat template renders without a control token between is encoded as one, header and answer, so
        that the ids are those of the rendered conversation, but where the answer begins with a line break.
        """
        runs = list(self._runs(list(segments), joined))
        flat, offsets = (
            values.tolist() for values in self.encode(["".join(p.text for p in run) for run in runs if not run[0].control])
        )
        pieces = (flat[start:stop] for start, stop in pairwise(offsets))
        control = {chat.START: [self.start], chat.END: [self.end], self.bos_text: self.bos.tolist()}
        ids: list[int] = []
        mask: list[bool] = []
        for run in runs:
            piece = control[run[0].text] if run[0].control else next(pieces)
            before = len(self.header) if len(run) > 1 else 0
            ids += piece
            mask += [False] * before + [run[-1].supervised] * (len(piece) - before)
        return ids, mask

    @staticmethod
    def _runs(segments: list[chat.Segment], joined: bool) -> Iterator[list[chat.Segment]]:
        """Each segment by itself, or with its header before it."""
        held: list[chat.Segment] = []
        for part in segments:
            if held and (part.control or not joined or LINE_BREAK.match(part.text)):
                yield held
                held = []
            held.append(part)
            if part.text != chat.HEADER or part.control:
                yield held
                held = []
        if held:
            yield held


def open_hugging_face(file: Path) -> HuggingFaceTokenizer:
    """tokenizer.json as Hugging Face's library reads it, with special-token text in content left text."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    if not file.is_file():
        raise DataError(f"{file}: no such file; Talaria needs a tokenizer in the tokenizer.json form.")
    try:
        tokenizer = HuggingFaceTokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception on whatever is wrong with the file
        raise DataError(f"{file}: not a tokenizer that the tokenizers library can read: {error}.") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def beginning(tokenizer: HuggingFaceTokenizer) -> list[int]:
    """The ids that the tokenizer puts before a text when it adds special tokens: Llama's <|begin_of_text|>."""
    bare = tokenizer.encode("x", add_special_tokens=False).ids
    found = tokenizer.encode("x", add_special_tokens=True).ids
    for count in range(len(found) - len(bare) + 1):
        if found[count : count + len(bare)] == bare:
            return list(found[:count])
    return []


def encode_with(tokenizer: HuggingFaceTokenizer) -> Encode:
    """The fallback and the oracle: exact, about 50 times slower."""

    def encode(texts: Sequence[str]) -> tuple[Ids, Offsets]:
        return flat([encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])

    return encode


def flat(pieces: Sequence[Sequence[int]]) -> tuple[Ids, Offsets]:
    """Ids end to end, and where each piece begins and the last one ends."""
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    return np.fromiter(chain.from_iterable(pieces), np.int32, offsets[-1]), offsets


def encode_with_fastokens(tokenizer: Any) -> Encode:
    def encode(texts: Sequence[str]) -> tuple[Ids, Offsets]:
        ids, offsets = tokenizer.encode_batch_flat(texts, False, True)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)

    return encode
