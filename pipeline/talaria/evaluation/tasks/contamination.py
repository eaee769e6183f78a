"""Whether a task's prompts are part of the training data: word for word, or in long stretches of words.

Text is compared as its words, in small letters and without punctuation. A prompt counts as known where its last message equals a
training message, or shares a stretch of WORDS words with one: 13, as GPT-3's paper has it (Brown et al., 2020, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import xxhash

from talaria.evaluation.tasks.task_file import TaskItem

WORDS = 13
_WORD = re.compile(r"\w+|[-+*/=<>^%$€£#@&|~]")


def contaminated(items: Sequence[TaskItem], texts: Iterable[str]) -> list[TaskItem]:
    """Return the items whose prompt is in the training data. `texts`: the messages that users wrote there."""
    wanted: dict[int, list[int]] = {}
    for place, item in enumerate(items):
        for mark in _marks(str(item.messages[-1]["content"])):
            wanted.setdefault(mark, []).append(place)
    lengths = {min(WORDS, len(_words(str(item.messages[-1]["content"])))) for item in items}
    found: set[int] = set()
    for text in texts:
        words = _words(text)
        seen = {_mark("=", words)} if len(words) in lengths or len(words) >= WORDS else set()
        if WORDS in lengths:
            seen |= set(_stretches(words))
        for mark in seen & wanted.keys():
            found.update(wanted[mark])
    return [items[place] for place in sorted(found)]


def prompts_of(messages: Iterable[Sequence[Mapping[str, str]]]) -> Iterator[str]:
    """Return what users wrote in conversations."""
    for conversation in messages:
        for message in conversation or ():
            if message["role"] == "user" and message["content"]:
                yield message["content"]


def _marks(text: str) -> set[int]:
    words = _words(text)
    return {_mark("=", words), *_stretches(words)} if words else set()


def _stretches(words: Sequence[str]) -> Iterator[int]:
    for start in range(len(words) - WORDS + 1):
        yield _mark("~", words[start : start + WORDS])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _mark(kind: str, words: Sequence[str]) -> int:
    return xxhash.xxh3_64_intdigest((kind + " ".join(words)).encode())
