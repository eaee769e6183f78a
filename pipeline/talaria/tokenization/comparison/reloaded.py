"""The tokenizer as transformers opens the saved folder: what a run compares its rows with.

transformers takes seconds to import where torch is installed, most of them under the interpreter's lock. So where this process
has not imported it yet, one of its own renders and encodes, beside the work here, and does without torch:

    python -m talaria.tokenization.comparison.reloaded    # folder and template, then conversations, one JSON object a line
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
from typing import Any, Protocol

from talaria.common.errors import DataError
from talaria.common.torch_free import hide_torch
from talaria.tokenization.tokenizer_folder import save

Messages = Sequence[Mapping[str, Any]]


class Reloaded(Protocol):
    """apply_chat_template of the saved folder; for one thread at a time."""

    def ids(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """The conversation's ids. Raises DataError where transformers cannot open the folder."""

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The conversation as the saved template renders it."""

    def close(self) -> None:
        """End what was begun for it."""


def reloaded(folder: Path, source: str) -> Reloaded:
    """The folder as it is saved with the template `source`, opened here where that costs no import."""
    return Here(folder, source) if "transformers" in sys.modules else Apart(folder, source)


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

    def ids(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        found: list[int] = self.tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
        return found

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))

    def close(self) -> None:
        pass


class Apart:
    """In a process of its own, which begins at once and ends with `close`, or when nobody is left to ask."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "talaria.tokenization.comparison.reloaded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        with contextlib.suppress(BrokenPipeError):  # `_ask` says why it has ended
            self._put({"folder": str(folder.absolute()), "source": source})

    def ids(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        found: list[int] = self._ask("ids", messages, tools)
        return found

    def text(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        return str(self._ask("text", messages, tools))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _put(self, request: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _ask(self, wanted: str, messages: Messages, tools: Sequence[Any] | None) -> Any:
        assert self._process.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._put([wanted, messages, tools])
            line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            told = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"{self.folder}: the process that compares with transformers has ended: {told or 'killed'}")
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(answer["error"])
        return answer[wanted]


def main() -> None:
    """Answer each line of stdin until it ends."""
    hide_torch()
    opened = json.loads(sys.stdin.readline() or "null")
    if not opened:
        return
    tokenizer = Here(Path(opened["folder"]), opened["source"])
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
