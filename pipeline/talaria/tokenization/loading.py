"""A tokenizer folder as the two libraries read it, and what each is asked."""

from __future__ import annotations

from functools import cached_property
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization import fastokens_backend as fast
from talaria.tokenization.tokenizer import (
    LINE_BREAK,
    Backend,
    Encode,
    Tokenizer,
    beginning,
    encode_with,
    encode_with_fastokens,
    open_hugging_face,
)
from talaria.tokenization.tokenizer_folder import before_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

_PROBES = ("Hello, world", " two  spaces ", "\n\nlines\n", "x", "1234567 3.14", "日本語 é", "don't", "\tTab", "")


class Encoder(NamedTuple):
    """Text to ids, and by which library."""

    encode: Encode
    backend: str
    fallback: str | None


class Added(NamedTuple):
    """A token that tokenizer.json has beside its vocabulary."""

    id: int
    special: bool
    takes_more: bool
    """Whether it takes white space beside it, or counts as a whole word alone."""


class Loading:
    """A tokenizer folder as fastokens reads it, in the background, and as Hugging Face's library does where that is asked.

    Each takes its time over a large vocabulary: half a second, and three times as long. Properties raise DataError where the
    folder holds no tokenizer.json that can be read.
    """

    _latest: ClassVar[Loading]
    """Held until the next, or the end of the process: two vocabularies take 40 ms to free, which cli/app.py need not wait for."""

    def __init__(self, folder: Path, backend: Backend = "auto") -> None:
        Loading._latest = self
        self.folder, self.backend = folder, backend
        self.file = file = folder / "tokenizer.json"
        fast.prepare()
        self._fast = fast.take(file) if backend != "tokenizers" else None

    @cached_property
    def hugging_face(self) -> HuggingFaceTokenizer:
        return open_hugging_face(self.file)

    @cached_property
    def beginning(self) -> list[int]:
        """The ids that the tokenizer puts before a text. Known without a vocabulary where it says that it adds nothing."""
        found = before_vocabulary(self.file) or {}
        adds_nothing = "post_processor" in found and (found["post_processor"] or {}).get("type", "ByteLevel") == "ByteLevel"
        return [] if adds_nothing else beginning(self.hugging_face)

    @cached_property
    def bos_text(self) -> str:
        return "".join(str(self.hugging_face.id_to_token(id)) for id in self.beginning)

    @cached_property
    def oracle(self) -> Tokenizer:
        """For ChatML, with Hugging Face's encoder. Raises DataError where the tokenizer knows no ChatML."""
        return self._chatml(Encoder(encode_with(self.hugging_face), "tokenizers", None))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """For ChatML, with the encoder. Raises DataError as `oracle`."""
        return self._chatml(self.encoder)

    def _chatml(self, encoder: Encoder) -> Tokenizer:
        start, end = (self._control_id(token) for token in (chat.START, chat.END))
        ids, offsets = encoder.encode(["\n", chat.HEADER])
        newline, header = ids[: offsets[1]], ids[offsets[1] :]
        return Tokenizer(self.folder, np.array(self.beginning, np.int32), self.bos_text, start, end, newline, header, *encoder)

    def _control_id(self, token: str) -> int:
        known = self.added.get(token)
        if known is None or not known.special:
            raise DataError(
                f"{self.file}: {token} is not among its special tokens, so it knows no ChatML; "
                "use a tokenizer that does, or set tokenize.template to own or to a template's file."
            )
        return known.id

    @cached_property
    def encoder(self) -> Encoder:
        """With fastokens, once it is there, unless it cannot be used; raises DataError where the backend must be fastokens."""
        if self._fast is None:
            return Encoder(encode_with(self.hugging_face), "tokenizers", None)
        try:
            return Encoder(encode_with_fastokens(self._fast.result()), "fastokens", None)
        except fast.ERRORS as error:
            if self.backend == "fastokens":
                raise DataError(f"{self.file}: fastokens cannot be used ({error}); set tokenize.backend to auto.") from error
            return Encoder(encode_with(self.hugging_face), "tokenizers", str(error))

    @cached_property
    def _native(self) -> Any:
        """fastokens' tokenizer, once it is there; None where it is not used."""
        try:
            return self._fast.result() if self._fast else None
        except fast.ERRORS:
            return None

    @cached_property
    def added(self) -> dict[str, Added]:
        """The tokens beside the vocabulary by their text, in the order of their ids."""
        found: list[tuple[int, Any]]
        if self._native is not None:
            found = [(token["id"], SimpleNamespace(**token)) for token in self._native.added_tokens()]
        else:
            found = list(self.hugging_face.get_added_tokens_decoder().items())
        return {
            token.content: Added(id, token.special, token.lstrip or token.rstrip or token.single_word)
            for id, token in sorted(found, key=itemgetter(0))
        }

    def pieces_equal_whole(self, control: str, header: str) -> bool:
        """Whether text between control tokens, and behind `header`, has the ids by itself that it has within a conversation.

        It has not where text gets a marker that a word begins (SentencePiece), or where a control token takes the white space
        beside it. Not for use beside `encode` by another thread.
        """
        if control not in self.added or any(token.special and token.takes_more for token in self.added.values()):
            return False
        parts = [text for probe in _PROBES for text in (probe, header if LINE_BREAK.match(probe) else header + probe)]
        apart = [id for text in parts for id in (*self._ids(text), self.added[control].id)]
        behind = all(
            self._ids(header + probe) == self._ids(header) + self._ids(probe) for probe in _PROBES if not LINE_BREAK.match(probe)
        )
        return behind and self._ids("".join(text + control for text in parts), with_control=True) == apart

    def _ids(self, text: str, with_control: bool = False) -> list[int]:
        """Ids of a text, in which control tokens count as such or stay text."""
        if self._native is not None:
            return list(self._native.encode(text, False, not with_control).ids)
        self.hugging_face.encode_special_tokens = not with_control
        try:
            return list(self.hugging_face.encode(text, add_special_tokens=False).ids)
        finally:
            self.hugging_face.encode_special_tokens = True


def load(folder: Path, backend: Backend = "auto") -> Tokenizer:
    """Read a tokenizer folder. Raises DataError as Loading does."""
    return Loading(folder, backend).tokenizer
