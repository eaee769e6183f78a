"""Look at what training will see: one conversation in the terminal, or a page of samples, with the loss mask visible.

What is shown is decoded from the ids and the mask of the tokens folder, not from the messages: it is what the trainer reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from talaria.common.errors import DataError, UserError
from talaria.common.files import MANIFEST, write_atomically
from talaria.common.printable import printable
from talaria.tokenization.dataset import TRAIN, VALIDATION, Tokens, open_tokens
from talaria.tokenization.tokenizer import open_hugging_face

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from tokenizers import Tokenizer

SAMPLES = 24
"""Conversations on a page, besides the longest and the one with the smallest supervised share."""
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""Text from the data must not steer the terminal: the old control characters become their Unicode pictures, others escapes."""


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { margin: 0; background: light-dark(#fff, #15181c); color: light-dark(#1c2024, #e3e6ea) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.55 ui-monospace, monospace; padding: .8rem 1rem;
      border: 1px solid light-dark(#d5d9de, #343a42); border-radius: 6px; color: light-dark(#565d66, #a3abb5) }
mark { background: light-dark(#d8f3dc, #14432a); color: light-dark(#0b3d1e, #d3f5de); border-bottom: 2px solid #2d9a55 }
b { font-weight: 600; color: light-dark(#8a2c78, #eea6df) }
h2 { font-size: 1rem; margin: 2rem 0 .5rem } table { border-spacing: 1.5rem 0; margin-left: -1.5rem } th { text-align: left }
"""


class TextSpan(NamedTuple):
    """A run of tokens that are alike."""

    text: str
    supervised: bool
    control: bool


_LEGEND = (
    TextSpan("supervised", True, False),
    TextSpan(" not supervised ", False, False),
    TextSpan("<|control token|>", False, True),
)


@dataclass(frozen=True)
class Sample:
    """One conversation as the trainer reads it."""

    split: str
    row: int
    """In the messages parquet."""
    tokens: int
    supervised: int
    spans: tuple[TextSpan, ...]

    @property
    def title(self) -> str:
        share = f"{self.supervised / self.tokens:.0%}"
        return f"{self.split}, row {self.row}: {self.tokens} tokens, {self.supervised} supervised ({share})"


class Folder:
    """A tokens folder with the tokenizer that is saved in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.splits = open_tokens(path)
        self.tokenizer: Tokenizer = open_hugging_face(path / "tokenizer" / "tokenizer.json")
        self.controls = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}

    def split(self, name: str) -> Tokens:
        tokens = self.splits.get(name)
        if tokens is None:
            there = " and ".join(split for split, found in self.splits.items() if found is not None)
            raise DataError(f"{self.path}: has no split {name!r}, only {there}.")
        return tokens

    def find(self, split: str, row: int) -> int:
        """The index in `split` of a row of the parquet. Raises DataError where it was dropped or is in the other split."""
        rows = self.split(split).rows
        index = int(np.searchsorted(rows, row))
        if index < len(rows) and rows[index] == row:
            return index
        for other, tokens in self.splits.items():
            if tokens is not None and row in tokens.rows:
                raise DataError(f"{self.path}: row {row} is in the {other} split; add --split {other}.")
        raise DataError(f"{self.path}: row {row} is not there: it was dropped, or the parquet ends before it; see {MANIFEST}.")

    def sample(self, split: str, index: int) -> Sample:
        tokens = self.split(split)
        ids, mask, _ = tokens.gather([index])
        kinds = zip(ids.tolist(), mask.tolist(), strict=True)
        spans = []
        for (supervised, control), run in groupby(kinds, key=lambda pair: (pair[1], pair[0] in self.controls)):
            text = self.tokenizer.decode([id for id, _ in run], skip_special_tokens=False)
            spans.append(TextSpan(printable(text.translate(_PICTURES), keep="\n\t"), supervised, control))
        return Sample(split, int(tokens.rows[index]), len(ids), int(mask.sum()), tuple(spans))


def show(tokens: Path, row: int | None = None, split: str = TRAIN, console: Console | None = None) -> None:
    """Print a conversation: what counts in the loss in green, control tokens reversed.

    Where there is no colour, supervised text stands between ⟦ and ⟧. `row` absent: the first of the split.
    Raises DataError where the row is not there.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    folder = Folder(tokens)
    sample = folder.sample(split, 0 if row is None else folder.find(split, row))
    console.print(Text(sample.title, style="bold"))
    console.print(_text(_LEGEND, plain=not console.color_system))
    console.rule()
    console.print(_text(sample.spans, plain=not console.color_system), soft_wrap=True)


def _text(spans: Sequence[TextSpan], plain: bool) -> Text:
    from rich.text import Text

    text = Text()
    for supervised, run in groupby(spans, key=lambda span: span.supervised):
        text.append("⟦" if plain and supervised else "")
        for span in run:
            style = "green" if supervised else "bright_black"
            text.append(span.text, style=f"{style} reverse" if span.control else style)
        text.append("⟧" if plain and supervised else "")
    return text


def write_html(tokens: Path, output: Path, rows: Sequence[int] | None = None) -> None:
    """A self-contained page of conversations: `rows` of the training split, or an even sample with the extremes."""
    folder = Folder(tokens)
    chosen = [(TRAIN, folder.find(TRAIN, row)) for row in rows] if rows is not None else list(_choose(folder))
    text = page([folder.sample(split, index) for split, index in chosen], facts_of(tokens))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output}: cannot write the page: {error.strerror}. Nothing was written.") from None


def _choose(folder: Folder) -> Iterator[tuple[str, int]]:
    """An even sample of each split, and of the training split the longest and the least supervised conversation."""
    for split, count in ((TRAIN, SAMPLES), (VALIDATION, SAMPLES // 4)):
        tokens = folder.splits[split]
        if tokens is None:
            continue
        even = np.linspace(0, len(tokens) - 1, min(count, len(tokens))).astype(int)
        extremes = [int(tokens.lengths.argmax()), int((tokens.supervised / tokens.lengths).argmin())]
        yield from ((split, int(index)) for index in dict.fromkeys([*even, *(extremes if split == TRAIN else [])]))


def facts_of(tokens: Path) -> dict[str, Any]:
    """The counts of the folder's manifest; none where it was made by something else."""
    path = tokens / MANIFEST
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.is_file() else {}
    return facts


def page(samples: Sequence[Sample], facts: Mapping[str, Any]) -> str:
    """HTML of the samples under the counts of `facts`."""
    counts = "".join(
        f"<tr><th scope=row>{escape(name.replace('_', ' '))}</th><td>{escape(_value(value))}</td></tr>"
        for name, value in facts.items()
    )
    body = "".join(f"<h2>{escape(sample.title)}</h2>\n<pre>{_html(sample.spans)}</pre>\n" for sample in samples)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tokenised samples</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>Tokenised samples</h1>\n"
        f"<table>{counts}</table>\n<pre>{_html(_LEGEND)}</pre>\n{body}</main></body></html>\n"
    )


def _html(spans: Sequence[TextSpan]) -> str:
    def one(span: TextSpan) -> str:
        text = escape(span.text)
        text = f"<b>{text}</b>" if span.control else text
        return f"<mark>{text}</mark>" if span.supervised else text

    return "".join(map(one, spans))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_value(number)}" for name, number in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
