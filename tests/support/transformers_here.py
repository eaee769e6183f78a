"""Comparisons with transformers in the tests' own process, which has imported it or will; APART is what commands use."""

from __future__ import annotations

from typing import Any, ClassVar

from talaria.tokenization.comparison import reloaded

APART = reloaded.Apart


class _Here(reloaded.Here):
    """In the place of `Apart`."""

    begun: ClassVar[list[Any]] = []

    @staticmethod
    def begin() -> None:
        """Begin no process for each run of tokenise."""


def use() -> None:
    reloaded.Apart = _Here  # type: ignore[assignment,misc]
