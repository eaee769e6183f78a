"""Comparisons with transformers in the tests' own process, which has imported it or will; APART is what commands use."""

from __future__ import annotations

from talaria.tokenization.comparison import reloaded

APART = reloaded.Apart


def use() -> None:
    """Begin no process for each run of tokenise."""
    reloaded.Apart = reloaded.Here  # type: ignore[assignment,misc]
