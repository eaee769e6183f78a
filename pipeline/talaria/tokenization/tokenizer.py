"""A tokenizer folder: find it, read its control tokens, encode with it, save it with a plain ChatML template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

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

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
TEMPLATE_FILE = "chat_template.jinja"
ORIGINAL_TEMPLATE_FILE = "chat_template.original.jinja"
ALL_FILES = (*FILES, TEMPLATE_FILE, ORIGINAL_TEMPLATE_FILE)


class Encode(Protocol):
    def __call__(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """Ids of all texts end to end, and the len(texts) + 1 places where one ends and the next begins.

        Adds no token, and leaves text that looks like a special token text.
        """


@dataclass(frozen=True)
class Tokenizer:
    """What encoding needs of a tokenizer folder."""

    folder: Path
    start: int
    end: int
    newline: Ids
    header: Ids
    """Ids of "assistant\\n", the part of an answer that belongs to the prompt."""
    encode: Encode
    backend: str
    fallback: str | None = None
    """Why fastokens could not be used, where it was asked for."""

    def ids(self, segments: Iterable[chat.Segment]) -> tuple[list[int], list[bool]]:
        """Ids and loss mask, segment by segment: the plain form of what encoder.py does with arrays."""
        parts = list(segments)
        flat, offsets = (values.tolist() for values in self.encode([part.text for part in parts if not part.control]))
        pieces = (flat[start:stop] for start, stop in pairwise(offsets))
        ids: list[int] = []
        mask: list[bool] = []
        for part in parts:
            piece = [self.start if part.text == chat.START else self.end] if part.control else next(pieces)
            ids += piece
            mask += [part.supervised] * len(piece)
        return ids, mask


def find(name: str | Path) -> Path:
    """A folder as it is, or the tokenizer files of a model on the Hugging Face hub, from its cache where they are there.

    Raises DataError with what to do.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"{name}: no such tokenizer folder; give a folder with tokenizer.json or a hub name like Qwen/Qwen3-4B-Base."
        )
    from talaria.common.hub import snapshot

    return snapshot(name, "main", [*FILES, TEMPLATE_FILE])[0]


class Loading:
    """A tokenizer folder as two libraries read it at once; fastokens takes a second over a large vocabulary, three times as long.

    Raises DataError where the folder holds no tokenizer.json or knows no ChatML.
    """

    oracle: Tokenizer
    """With Hugging Face's encoder."""
    _latest: ClassVar[Loading]
    """Held until the next, or the end of the process: two vocabularies take 40 ms to free, which cli/app.py need not wait for."""

    def __init__(self, folder: Path, backend: Backend = "auto") -> None:
        Loading._latest = self
        self.backend = backend
        self.file = file = folder / "tokenizer.json"
        fast.prepare()
        self._fast = fast.take(file) if backend != "tokenizers" else None
        hugging_face = open_hugging_face(file)
        start, end = control_id(hugging_face, chat.START, file), control_id(hugging_face, chat.END, file)
        encode = encode_with(hugging_face)
        ids, offsets = encode(["\n", chat.HEADER])
        self.oracle = Tokenizer(folder, start, end, ids[: offsets[1]], ids[offsets[1] :], encode, "tokenizers")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """With fastokens, once it is there, unless it cannot be used; raises DataError where the backend must be fastokens."""
        if self._fast is None:
            return self.oracle
        try:
            return replace(self.oracle, encode=encode_with_fastokens(self._fast.result()), backend="fastokens")
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            if self.backend == "fastokens":
                raise DataError(f"{self.file}: fastokens cannot be used ({error}); set tokenize.backend to auto.") from error
            return replace(self.oracle, fallback=str(error))


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


def control_id(tokenizer: HuggingFaceTokenizer, token: str, file: Path) -> int:
    added = {entry.content: (id, entry.special) for id, entry in tokenizer.get_added_tokens_decoder().items()}
    id, special = added.get(token, (None, False))
    if id is None or not special:
        raise DataError(
            f"{file}: {token} is not among its special tokens; Talaria trains on ChatML, so use a tokenizer that knows it."
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


def save(folder: Path, out_dir: Path) -> None:
    """Copy the tokenizer's files, with plain ChatML as the chat template and a template of its own kept beside it.

    Templates differ in what they do to the text: Qwen3's puts an empty think block on the last answer only and cuts content at
    </think>, so that what is trained is not what is served. The saved template is the one the ids were made with.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).is_file() and folder != out_dir:
            shutil.copyfile(folder / name, out_dir / name)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    original = settings.pop("chat_template", None)
    if (folder / TEMPLATE_FILE).is_file():
        original = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    kept = folder / ORIGINAL_TEMPLATE_FILE
    if kept.is_file():  # the folder is one of ours: its template is ChatML already
        original = kept.read_text(encoding="utf-8")
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out_dir / TEMPLATE_FILE).write_text(chat.TEMPLATE, encoding="utf-8")
    if original and original != chat.TEMPLATE:
        text = original if isinstance(original, str) else json.dumps(original, indent=2, ensure_ascii=False)
        (out_dir / ORIGINAL_TEMPLATE_FILE).write_text(text, encoding="utf-8")
