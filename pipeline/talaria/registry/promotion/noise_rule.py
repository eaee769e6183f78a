"""The gate's rule `noise`: a candidate must be better than chance explains, item by item. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from talaria.config.evaluation_settings import HELDOUT_LOSS, GateMetric, Promote
from talaria.evaluation.items import Items, MetricItems, pair, regressions
from talaria.evaluation.paired import CONFIDENCE, Interval, Pairs, improvement
from talaria.registry.promotion.gate import NO_LOSS, Decision

_SHOWN = {"heldout_loss": "held-out loss", "exact_match": "exact match"}
_LISTED = 3
"""Items that became wrong and are named."""


@dataclass(frozen=True)
class Rival:
    """A model that the candidate must beat."""

    name: str
    """As sentences have it: the base model, the champion (version 3)."""
    items: Items | None
    why: str | None = None
    """Why there are no results per item."""
    guarded: bool = False
    """Whether answers that it has right may not become wrong (promote.regressions): the champion's."""


@dataclass(frozen=True)
class _Comparison:
    """One metric, one rival."""

    metric: GateMetric
    ours: MetricItems
    pairs: Pairs
    interval: Interval

    @property
    def vetoed(self) -> bool:
        return self.metric.veto and self.interval.high < -self.metric.margin

    def __str__(self) -> str:
        better, worse = ("lower", "higher") if self.metric.lower_is_better else ("higher", "lower")
        gained = self.interval.mean
        moved = f"{better if gained > 0 else worse} by {abs(gained):.4f}" if gained else "the same"
        p = f", p {self.interval.p:.2g}" if self.interval.p is not None else ""
        return (
            f"{shown(self.metric.name)} {self.ours.mean:.4f}, {moved} ({_range(self.interval)}, {len(self.ours.items)} items{p})"
        )


def decide_beyond_noise(settings: Promote, ours: Items | None, loss: float | None, rivals: Sequence[Rival]) -> Decision:
    """Decide whether to promote, in three lines: the verdict, the numbers, and what guards say.

    ours: the candidate's results per item; loss: its held-out loss, which says why there are none.
    """
    if loss is None and any(metric.name.startswith(HELDOUT_LOSS) for metric in settings.compared):
        return Decision(False, NO_LOSS)
    if ours is None:
        cure = "evaluate and register it again, or set promote.rule to plain"
        return Decision(False, f"Its evaluation kept no results per item, as earlier versions of Talaria did; {cure}.")
    for metric in settings.compared:
        if ours.find(metric.name) is None:
            return Decision(False, f"It has no result for {metric.name}, which promote.metrics compares.")
    lost: list[str] = []
    numbers: list[str] = []
    guards: list[str] = []
    for rival in rivals:
        compared = _compare(settings, ours, rival)
        if isinstance(compared, str):
            return Decision(False, compared)
        total = _total(compared)
        texts = ", ".join(map(str, compared))
        several = sum(not one.metric.veto for one in compared) > 1
        numbers.append(f"Against {rival.name}: {texts}" + (f"; in sum {total.mean:.4f} ({_range(total)})." if several else "."))
        if not total.low > 0:
            lost.append(f"It is not better than {rival.name} beyond noise{_margins(settings)}.")
        lost += [f"It is worse than {rival.name} in {shown(one.metric.name)} beyond noise." for one in compared if one.vetoed]
        if rival.guarded and settings.regressions is not None and rival.items is not None:
            said, too_many = _regressions(settings.regressions, ours, rival)
            guards.append(said)
            lost += [said] if too_many else []
    names = " and ".join(rival.name for rival in rivals)
    verdict = " ".join(dict.fromkeys(lost)) or f"It is better than {names} beyond noise{_margins(settings)}."
    vetoes = [shown(metric.name) for metric in settings.compared if metric.veto]
    guards.insert(0, f"Vetoes: {', '.join(vetoes) if vetoes else 'none set'}.")
    if settings.regressions is None:
        guards.append("Answers that become wrong: not limited.")
    return Decision(not lost, "\n".join([verdict, " ".join(numbers), " ".join(guards)]))


def metrics_needed(settings: Promote, ours: Items) -> list[str]:
    """Return the names of the metrics for which a rival's results per item are needed."""
    guarded = [name for name in ours.metrics if name != HELDOUT_LOSS] if settings.regressions is not None else []
    return list(dict.fromkeys([*(metric.name for metric in settings.compared), *guarded]))


def shown(metric: str) -> str:
    """Return a metric's name as sentences have it."""
    head, slash, rest = metric.partition("/")
    return f"{_SHOWN.get(head, head)}{slash}{rest}"


def _compare(settings: Promote, ours: Items, rival: Rival) -> list[_Comparison] | str:
    """Every metric against one rival, or the sentence why that is not possible."""
    compared = []
    for metric in settings.compared:
        mine = ours.find(metric.name)
        theirs = rival.items.whole(metric.name) if rival.items else None  # a slice is chosen by the candidate's tags
        assert mine is not None  # the caller has looked
        pairs = pair(mine, theirs, lower_is_better=metric.lower_is_better) if theirs else None
        if pairs is None:
            why = rival.why or "it was not measured on the same items"
            return f"How {rival.name} does on its items of {shown(metric.name)} is not known: {why}."
        compared.append(_Comparison(metric, mine, pairs, improvement([(1.0, pairs)])))
    return compared


def _total(compared: Sequence[_Comparison]) -> Interval:
    """The weighted sum of improvements, less the margins."""
    counted = [one for one in compared if not one.metric.veto]
    if len(counted) == 1:
        total, less = counted[0].interval, counted[0].metric.margin
    else:
        total = improvement([(one.metric.weight, one.pairs) for one in counted])
        less = sum(one.metric.weight * one.metric.margin for one in counted)
    return Interval(total.mean - less, total.low - less, total.high - less, total.p)


def _regressions(allowed: int, ours: Items, rival: Rival) -> tuple[str, bool]:
    """(What is to be said, whether more answers became wrong than may)."""
    assert rival.items is not None
    wrong: list[str] = []
    for name, mine in ours.metrics.items():
        theirs = rival.items.find(name)
        if theirs is not None:
            wrong += [f"{shown(name)} {item}" for item in regressions(mine, theirs)]
    named = f" ({', '.join(wrong[:_LISTED])}{', ...' if len(wrong) > _LISTED else ''})" if wrong else ""
    said = f"Answers that {rival.name} has right and it has wrong: {len(wrong)}{named}, at most {allowed} allowed."
    return said, len(wrong) > allowed


def _margins(settings: Promote) -> str:
    margins = [f"{metric.margin:g} in {shown(metric.name)}" for metric in settings.compared if metric.margin and not metric.veto]
    return f" and by more than {', '.join(margins)}" if margins else ""


def _range(interval: Interval) -> str:
    if abs(interval.low) == float("inf"):
        return "too few items differ for an interval"
    return f"{CONFIDENCE:.0%} interval {interval.low:.4f} to {interval.high:.4f}"
