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
    asked = [_words(str(item.messages[-1]["content"])) for item in items]
    whole: dict[str, list[int]] = {}
    stretches: dict[int, list[int]] = {}
    for place, words in enumerate(asked):
        if words:
            whole.setdefault(" ".join(words), []).append(place)
        for start in _starts(words):
            stretches.setdefault(_mark(words[start : start + WORDS]), []).append(place)
    lengths = {len(words) for words in asked}
    begins = {(words[start], words[start + 1]) for words in asked for start in _starts(words)}
    found: set[int] = set()
    for text in texts:
        words = _words(text)
        if len(words) in lengths:
            found.update(whole.get(" ".join(words), ()))
        for start in _starts(words) if begins else ():
            if (words[start], words[start + 1]) in begins:  # most stretches are told apart without a digest
                found.update(stretches.get(_mark(words[start : start + WORDS]), ()))
    return [items[place] for place in sorted(found)]


def prompts_of(messages: Iterable[Sequence[Mapping[str, str]]]) -> Iterator[str]:
    """Return what users wrote in conversations."""
    for conversation in messages:
        for message in conversation or ():
            if message["role"] == "user" and message["content"]:
                yield message["content"]


def _starts(words: Sequence[str]) -> range:
    """Places at which a stretch of WORDS words begins."""
    return range(len(words) - WORDS + 1)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _mark(words: Sequence[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode())
