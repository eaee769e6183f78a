"""The tokenizer of a folder: its control tokens, and text to ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization import fastokens_backend as fast

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Backend = Literal["auto", "fastokens", "tokenizers"]

_PROBES = ("Hello, world", " two  spaces ", "\n\nlines\n", "x", "1234567 3.14", "日本語 é", "don't", "\tTab", "")
_LINE_BREAK = re.compile(r"\s*[\r\n]")
"""Begins text that would merge with a line break before it."""


def begins_with_line_break(message: chat.Message) -> bool:
    """Whether this is an answer whose text would merge with its header's line break."""
    return message["role"] == chat.ASSISTANT and _LINE_BREAK.match(message["content"]) is not None


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
            if held and (part.control or not joined or _LINE_BREAK.match(part.text)):
                yield held
                held = []
            held.append(part)
            if part.text != chat.HEADER or part.control:
                yield held
                held = []
        if held:
            yield held


class Encoder(NamedTuple):
    """Text to ids, and by which library."""

    encode: Encode
    backend: str
    fallback: str | None


class Loading:
    """A tokenizer folder as two libraries read it at once; fastokens takes a second over a large vocabulary, three times as long.

    Raises DataError where the folder holds no tokenizer.json.
    """

    _latest: ClassVar[Loading]
    """Held until the next, or the end of the process: two vocabularies take 40 ms to free, which cli/app.py need not wait for."""

    def __init__(self, folder: Path, backend: Backend = "auto") -> None:
        Loading._latest = self
        self.folder, self.backend = folder, backend
        self.file = file = folder / "tokenizer.json"
        fast.prepare()
        self._fast = fast.take(file) if backend != "tokenizers" else None
        self.hugging_face = open_hugging_face(file)

    @cached_property
    def oracle(self) -> Tokenizer:
        """For ChatML, with Hugging Face's encoder. Raises DataError where the tokenizer knows no ChatML."""
        start, end = (control_id(self.hugging_face, token, self.file) for token in (chat.START, chat.END))
        encode = encode_with(self.hugging_face)
        ids, offsets = encode(["\n", chat.HEADER])
        bos = beginning(self.hugging_face)
        text = "".join(str(self.hugging_face.id_to_token(id)) for id in bos)
        newline, header = ids[: offsets[1]], ids[offsets[1] :]
        return Tokenizer(self.folder, np.array(bos, np.int32), text, start, end, newline, header, encode, "tokenizers")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """For ChatML, with the encoder."""
        encode, backend, fallback = self.encoder
        return replace(self.oracle, encode=encode, backend=backend, fallback=fallback)

    @cached_property
    def encoder(self) -> Encoder:
        """With fastokens, once it is there, unless it cannot be used; raises DataError where the backend must be fastokens."""
        if self._fast is None:
            return Encoder(encode_with(self.hugging_face), "tokenizers", None)
        try:
            return Encoder(encode_with_fastokens(self._fast.result()), "fastokens", None)
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            if self.backend == "fastokens":
                raise DataError(f"{self.file}: fastokens cannot be used ({error}); set tokenize.backend to auto.") from error
            return Encoder(encode_with(self.hugging_face), "tokenizers", str(error))

    def pieces_equal_whole(self, control: str, header: str) -> bool:
        """Whether text between control tokens, and behind `header`, has the ids by itself that it has within a conversation.

        It has not where text gets a marker that a word begins (SentencePiece), or where a control token takes the white space
        beside it. Not for use beside `encode` by another thread.
        """
        tokenizer = self.hugging_face
        if any(
            token.special and (token.lstrip or token.rstrip or token.single_word)
            for token in tokenizer.get_added_tokens_decoder().values()
        ):
            return False
        parts = [text for probe in _PROBES for text in (probe, header if _LINE_BREAK.match(probe) else header + probe)]
        apart = [
            id for text in parts for id in (*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id(control))
        ]
        behind = all(
            tokenizer.encode(header + probe, add_special_tokens=False).ids
            == [id for text in (header, probe) for id in tokenizer.encode(text, add_special_tokens=False).ids]
            for probe in _PROBES
            if not _LINE_BREAK.match(probe)
        )
        tokenizer.encode_special_tokens = False
        try:
            whole = tokenizer.encode("".join(text + control for text in parts), add_special_tokens=False).ids
        finally:
            tokenizer.encode_special_tokens = True
        return behind and whole == apart


def load(folder: Path, backend: Backend = "auto") -> Tokenizer:
    """Read a tokenizer folder. Raises DataError as Loading does."""
    return Loading(folder, backend).tokenizer


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


def control_id(tokenizer: HuggingFaceTokenizer, token: str, file: Path) -> int:
    added = {entry.content: (id, entry.special) for id, entry in tokenizer.get_added_tokens_decoder().items()}
    id, special = added.get(token, (None, False))
    if id is None or not special:
        raise DataError(
            f"{file}: {token} is not among its special tokens, so it knows no ChatML; "
            "use a tokenizer that does, or set tokenize.template to own or to a template's file."
        )
    return id


def encode_with(tokenizer: HuggingFaceTokenizer) -> Encode:
    """The fallback and the oracle: exact, about 50 times slower."""

    def encode(texts: Sequence[str]) -> tuple[Ids, Offsets]:
        pieces = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        offsets = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(pieces), np.int32, offsets[-1])
        return ids, offsets

    return encode


def encode_with_fastokens(tokenizer: Any) -> Encode:
    def encode(texts: Sequence[str]) -> tuple[Ids, Offsets]:
        ids, offsets = tokenizer.encode_batch_flat(texts, False, True)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)

    return encode
