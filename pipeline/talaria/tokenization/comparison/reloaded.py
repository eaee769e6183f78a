"""The tokenizer as transformers opens the saved folder: what a run compares its rows with.

transformers takes seconds to import where torch is installed, most of them under the interpreter's lock. So where this process
has not imported it yet, one of its own renders and encodes, beside the work here, and does without torch:

    python -m talaria.tokenization.comparison.reloaded    # folder and template, then conversations, one JSON object a line

It imports before it is told the folder, so that it can begin before that is known.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from talaria.common.errors import DataError
from talaria.common.imports import quick_imports
from talaria.common.torch_free import hide_torch
from talaria.tokenization.tokenizer_folder import save

Messages = Sequence[Mapping[str, Any]]


class Reloaded(Protocol):
    """apply_chat_template of the saved folder; for one thread at a time."""

    def ids(self, conversations: Sequence[Messages], tools: Sequence[Any] | None = None) -> list[list[int]]:
        """Each conversation's ids; all have these tools. Raises DataError where transformers cannot open the folder."""

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The conversation as the saved template renders it."""

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text by itself; what looks like a control token stays text."""

    def close(self) -> None:
        """End what was begun for it."""


def reloaded(folder: Path, source: str) -> Reloaded:
    """The folder as it is saved with the template `source`, opened here where that costs no import."""
    return Here(folder, source) if "transformers" in sys.modules else Apart(folder, source)


def begin() -> None:
    """Start what `reloaded` will need, as it takes a second; nothing where that has begun, or is not needed."""
    if "transformers" not in sys.modules:
        Apart.begin()


def give_up() -> None:
    """End what `begin` has started, where nobody has asked for it."""
    if Apart.begun:
        Apart.begun.pop().close()


def open_saved(folder: Path, source: str) -> Any:
    """The tokenizer as transformers will open the saved folder, beside the model's config.json where there is one.

    Raises DataError where it cannot.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        save(folder, Path(work), source)
        if (folder / "config.json").is_file():
            shutil.copyfile(folder / "config.json", Path(work) / "config.json")
        try:
            return AutoTokenizer.from_pretrained(work, trust_remote_code=False)
        except Exception as error:  # whatever a class of transformers does not like in the files
            raise DataError(f"{folder}: transformers cannot open this tokenizer ({error}).") from error


class Here:
    """In this process."""

    def __init__(self, folder: Path, source: str, opened: Any = None) -> None:
        self.folder, self.source = folder, source
        if opened is not None:
            self.tokenizer = opened

    @cached_property
    def tokenizer(self) -> Any:
        return open_saved(self.folder, self.source)

    def ids(self, conversations: Sequence[Messages], tools: Sequence[Any] | None = None) -> list[list[int]]:
        return [self.tokenizer.apply_chat_template(one, tools=tools, return_dict=False) for one in conversations]

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))

    def pieces(self, texts: Sequence[str], tools: None = None) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        try:
            return [backend.encode(text, add_special_tokens=False).ids for text in texts]
        finally:
            backend.encode_special_tokens = False

    def close(self) -> None:
        pass


class TransformersProcess:
    """A process that imports transformers, and then answers lines; it ends with `close`, or when nobody is left to ask."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "talaria.tokenization.comparison.reloaded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def put(self, request: Any) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `get` says why it has ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def get(self) -> Any:
        """The next line. Raises RuntimeError where the process has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            told = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"the process that compares with transformers has ended: {told or 'killed'}")
        return json.loads(line)


class Apart:
    """In a process of its own."""

    begun: ClassVar[list[TransformersProcess]] = []
    """At most one, for the next folder."""

    @classmethod
    def begin(cls) -> None:
        if not cls.begun:
            cls.begun.append(TransformersProcess())

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.begin()
        self._process = self.begun.pop()
        self._process.put({"folder": str(folder.absolute()), "source": source})

    def ids(self, conversations: Sequence[Messages], tools: Sequence[Any] | None = None) -> list[list[int]]:
        found: list[list[int]] = self._ask("ids", conversations, tools)
        return found

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        return str(self._ask("text", messages, tools))

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._ask("pieces", texts, None)
        return found

    def close(self) -> None:
        self._process.close()

    def _ask(self, wanted: str, messages: Any, tools: Sequence[Any] | None) -> Any:
        self._process.put([wanted, messages, tools])
        try:
            answer = self._process.get()
        except RuntimeError as error:
            raise RuntimeError(f"{self.folder}: {error}") from None
        if "error" in answer:
            raise DataError(answer["error"])
        return answer[wanted]


def main() -> None:
    """Answer each line of stdin until it ends."""
    hide_torch()
    with quick_imports():
        from transformers import AutoTokenizer  # noqa: F401  # before the folder is known

        opened = json.loads(sys.stdin.readline() or "null")
        if not opened:
            return
        tokenizer = Here(Path(opened["folder"]), opened["source"])
        with contextlib.suppress(DataError):  # told to who asks first
            _ = tokenizer.tokenizer
    for line in sys.stdin:
        wanted, messages, tools = json.loads(line)
        try:
            answer = {wanted: getattr(tokenizer, wanted)(messages, tools)}
        except DataError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
