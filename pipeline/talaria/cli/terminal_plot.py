"""Curves, numbers and times as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.text import Text

from talaria.common.errors import UserError

_TICKS = 6


@dataclass(frozen=True)
class Line:
    x: list[float]
    y: list[float]
    color: str
    """As plotext names it."""


def chart(lines: Sequence[Line], width: int, height: int) -> RenderableType:
    """Draw lines with braille dots; return a remark if there is nothing to draw."""
    drawn = [line for line in lines if line.y]
    if not drawn:
        return Text("no such values yet", style="dim")
    try:
        import plotext
    except ModuleNotFoundError:
        raise UserError("curves in the terminal need plotext; install it with `pip install 'talaria[train]'`.") from None
    figure = plotext.figure
    figure.clear()
    plotext.terminal.limit(False, False)  # the size is ours to choose
    figure.plot_size(width, height)
    figure.theme("simple")  # the terminal's own background
    for ruler, values in (("x", [x for line in drawn for x in line.x]), ("y", [y for line in drawn for y in line.y])):
        positions = ticks(min(values), max(values))
        figure.ruler(ruler).ticks(positions, [compact(position) for position in positions])
    for line in drawn:
        signal = figure.signal(line.x, line.y, marker=plotext.marker("braille", plotext.pixel(line.color)))
        signal.lines()
        figure.draw(signal)
    return Text.from_ansi(figure.build().string())


def ticks(low: float, high: float) -> list[float]:
    """Return a few evenly spaced values from low to high, both included."""
    return [low + (high - low) * part / (_TICKS - 1) for part in range(_TICKS)]


def compact(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def number(value: float | None, spec: str = ".4f") -> str:
    return "–" if value is None else format(value, spec)
