"""The trials of a sweep: every combination of the listed values, or as many as are drawn. Equal configurations, equal trials."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from talaria.common.errors import ConfigError
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.config.section import NotInKey, Section
from talaria.config.sweep_settings import Sweep
from talaria.config.train_settings import Train

MOST = 1_000
_DIGITS = 4
_DRAWS = 100
"""Draws for a trial that no other trial equals, before it is given up."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int
    """From 1, in the order of the plan."""
    settings: Mapping[str, Any]
    """What it has of its own, by dotted name."""
    config: Config
    reference: bool
    """Whether it trains to its end, as one of those that later trials are compared with."""

    @property
    def label(self) -> str:
        """Its own settings in a line: 'train.lr=0.0001, train.seed=1'."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def plan(config: Config) -> list[Trial]:
    """Return the trials of `config.sweep`. Raises ConfigError, one sentence, for a sweep that cannot be run or compared."""
    sweep = config.sweep
    _refuse(sweep)
    if not config.holds_out:
        raise ConfigError("A sweep compares held-out losses; set tokenize.validation_fraction, or held_out of a source, above 0.")
    chosen = list(_combinations(sweep) if sweep.trials is None else _drawn(sweep))
    tree = config.model_dump(mode="json")
    trials = []
    for number, own in enumerate(chosen, 1):
        label = ", ".join(f"{name}={value}" for name, value in own.items())
        made = settings.override({**tree, "train": {**tree["train"], "lora": dict(tree["train"]["lora"])}}, own, f"trial {label}")
        trials.append(Trial(number, own, made, number <= sweep.references))
    _refuse_equal(trials)
    return trials


def _refuse(sweep: Sweep) -> None:
    if not sweep.values and not sweep.ranges:
        raise ConfigError("There is nothing to sweep over; set sweep.values, for example {train.lr: [1e-5, 3e-5]}.")
    known = dict(_settings_of(Train, "train."))
    for name in [*sweep.values, *sweep.ranges]:
        if name not in known:
            raise ConfigError(
                f"sweep: {name} is no setting of train that changes the result; trials share data and base model, so that their "
                "held-out losses can be compared."
            )
    if both := sorted(sweep.values.keys() & sweep.ranges.keys()):
        raise ConfigError(f"sweep: {both[0]} is in sweep.values and in sweep.ranges; leave one out.")
    if empty := next((name for name, values in sweep.values.items() if not values), None):
        raise ConfigError(f"sweep.values: {empty} has no values.")
    for name, bounds in sweep.ranges.items():
        if known[name] not in (int, float) or len(bounds) != 2 or not 0 < bounds[0] < bounds[1]:
            raise ConfigError(f"sweep.ranges: {name} needs two numbers [lowest, highest] above 0, the lowest first.")
    if sweep.ranges and sweep.trials is None:
        raise ConfigError("sweep.ranges has endless combinations; set sweep.trials.")
    combinations = math.prod(map(len, sweep.values.values()))
    if sweep.trials is None and combinations > MOST:
        raise ConfigError(f"sweep.values has {combinations:,} combinations, and {MOST:,} is the most; set sweep.trials.")
    if sweep.trials is not None and not sweep.ranges and sweep.trials > combinations:
        raise ConfigError(f"sweep.values has {combinations} combinations, fewer than sweep.trials, {sweep.trials}.")


def _settings_of(section: type[Section], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the settings that decide a training's result, with their types."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _settings_of(kind, f"{prefix}{name}.")
        elif NotInKey not in field.metadata:
            kinds = (kind, *getattr(kind, "__args__", ()))  # of a setting that may be absent, the other kind
            plain = next((one for one in (int, float) if one in kinds), kind)
            yield f"{prefix}{name}", plain


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield them all; the last setting changes fastest."""
    for index in range(math.prod(map(len, sweep.values.values()))):
        yield _combination(sweep, index)


def _combination(sweep: Sweep, index: int) -> dict[str, Any]:
    found = {}
    for name, values in reversed(sweep.values.items()):
        index, place = divmod(index, len(values))
        found[name] = values[place]
    return dict(reversed(found.items()))


def _drawn(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield `sweep.trials` different trials. Uses random() alone, which gives the same numbers in every version of Python."""
    draw = random.Random(sweep.seed)  # noqa: S311 (a draw, no secret)
    kinds = dict(_settings_of(Train, "train."))
    combinations = math.prod(map(len, sweep.values.values()))
    seen: set[str] = set()
    while len(seen) < (sweep.trials or 0):
        for _ in range(_DRAWS * MOST):
            found = _combination(sweep, int(draw.random() * combinations))
            for name, (low, high) in sweep.ranges.items():
                number = low * (high / low) ** draw.random()
                found[name] = round(number) if kinds[name] is int else float(f"{number:.{_DIGITS}g}")
            if repr(found) not in seen:
                break
        else:
            raise ConfigError(f"sweep: there are no {sweep.trials} different trials in these ranges; lower sweep.trials.")
        seen.add(repr(found))
        yield found


def _refuse_equal(trials: list[Trial]) -> None:
    known: dict[str, Trial] = {}
    for trial in trials:
        key = trial.config.train.model_dump_json()
        if key in known:
            raise ConfigError(f"sweep: {known[key].label} and {trial.label} are one training; leave one out.")
        known[key] = trial
