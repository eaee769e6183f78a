"""The gate's rule `noise`: better beyond noise wins, within noise does not, and equal models hardly ever."""

from __future__ import annotations

import numpy as np
import pytest
from talaria.config.evaluation_settings import Promote
from talaria.evaluation.items import Items, MetricItems
from talaria.evaluation.paired import Pairs, improvement, mcnemar
from talaria.registry.promotion.noise_rule import Rival, decide_beyond_noise

COUNT = 200
RANDOM = np.random.default_rng(5)
DIFFICULTY = RANDOM.gamma(2.0, 0.5, COUNT)
TARGETS = RANDOM.integers(5, 300, COUNT).astype(float)


def results(better: float = 0.0, noise: float = 0.05, draw=RANDOM, **tasks: list[bool]) -> Items:
    """Losses per conversation of a model that is `better` than another one, but for noise of its own."""
    found = Items()
    losses = DIFFICULTY - better + draw.normal(0, noise, COUNT)
    names, tags = [f"c{n}" for n in range(COUNT)], [["web" if n % 2 else "books"] for n in range(COUNT)]
    found.add("heldout_loss", MetricItems(names, losses, TARGETS, np.zeros(COUNT, dtype=bool), tags))
    for name, right in tasks.items():
        flags = np.array(right)
        items = [f"{name}{n}" for n in range(len(flags))]
        found.add(f"task/{name}", MetricItems(items, flags.astype(float), np.ones(len(flags)), flags, [[] for _ in flags]))
    return found


def decide(ours: Items | None, theirs: Items | None, **settings):
    rivals = [Rival("the champion (version 3)", theirs, "its files are gone", guarded=True)]
    return decide_beyond_noise(Promote.model_validate(settings), ours, 1.0, rivals)


def test_a_candidate_beyond_noise_is_promoted_in_three_lines():
    decision = decide(results(0.05), results())
    assert decision.promoted
    verdict, numbers, guards = decision.reason.split("\n")
    assert verdict == "It is better than the champion (version 3) beyond noise."
    assert numbers.startswith("Against the champion (version 3): held-out loss ")
    assert ", lower by 0.0" in numbers
    assert "95% interval 0.0" in numbers
    assert "200 items" in numbers
    assert guards == "Vetoes: none set. Answers that become wrong: not limited."


def test_one_within_noise_is_not_though_its_mean_is_better():
    ours, theirs = results(), results()
    if ours.metrics["heldout_loss"].mean > theirs.metrics["heldout_loss"].mean:
        ours, theirs = theirs, ours
    decision = decide(ours, theirs)
    assert not decision.promoted
    assert "It is not better than the champion (version 3) beyond noise." in decision.reason
    assert "lower by 0.00" in decision.reason


def test_equal_models_are_promoted_in_less_than_five_percent_of_500_draws():
    draw = np.random.default_rng(11)
    promoted = sum(decide(results(draw=draw), results(draw=draw)).promoted for _ in range(500))
    assert 0 < promoted < 25


def test_a_better_model_is_promoted_in_most_draws():
    draw = np.random.default_rng(12)
    assert sum(decide(results(0.03, draw=draw), results(draw=draw)).promoted for _ in range(40)) >= 36


def test_the_margin_is_what_it_must_be_better_by():
    ours, theirs = results(0.05), results()
    assert decide(ours, theirs, margin=0.02).promoted
    refused = decide(ours, theirs, margin=0.06)
    assert not refused.promoted
    assert "beyond noise and by more than 0.06 in held-out loss" in refused.reason


def test_a_slice_is_a_metric_too():
    assert decide(results(0.05), results(), metrics=[{"name": "heldout_loss/web"}]).promoted
    missing = decide(results(0.05), results(), metrics=[{"name": "heldout_loss/mail"}])
    assert missing.reason == "It has no result for heldout_loss/mail, which promote.metrics compares."


def test_a_veto_refuses_what_is_worse_beyond_noise():
    metrics = [{"name": "heldout_loss"}, {"name": "task/sums", "veto": True}]
    half = [True] * 20 + [False] * 20
    fine = decide(results(0.05, sums=half), results(sums=half[::-1]), metrics=metrics)
    assert fine.promoted
    assert "Vetoes: task/sums." in fine.reason
    worse = decide(results(0.05, sums=[False] * 40), results(sums=half), metrics=metrics)
    assert not worse.promoted
    assert "It is worse than the champion (version 3) in task/sums beyond noise." in worse.reason


def test_weights_add_metrics_up():
    metrics = [{"name": "heldout_loss"}, {"name": "task/sums", "weight": 2.0}]
    better, worse = [True] * 35 + [False] * 5, [True] * 20 + [False] * 20
    won = decide(results(-0.05, sums=better), results(sums=worse), metrics=metrics)
    assert won.promoted, "a task that is much better outweighs a loss that is a little worse"
    assert "; in sum 0." in won.reason
    assert not decide(results(-0.05, sums=worse), results(sums=worse), metrics=metrics).promoted


def test_the_canary_counts_answers_that_become_wrong():
    before, after = [True] * 10 + [False] * 10, [False] * 2 + [True] * 18
    allowed = decide(results(0.05, sums=after), results(sums=before), regressions=2)
    assert allowed.promoted
    assert "has right and it has wrong: 2 (task/sums sums0, task/sums sums1), at most 2 allowed." in allowed.reason
    refused = decide(results(0.05, sums=after), results(sums=before), regressions=1)
    assert not refused.promoted
    assert refused.reason.startswith("Answers that the champion (version 3) has right and it has wrong: 2")


def test_without_results_nothing_is_promoted_and_the_reason_says_what_to_do():
    assert "set promote.rule to plain" in decide(None, results()).reason
    unknown = decide(results(0.05), None)
    assert not unknown.promoted
    assert unknown.reason == "How the champion (version 3) does on its items of held-out loss is not known: its files are gone."


def test_right_and_wrong_are_compared_by_mcnemars_exact_test():
    found = mcnemar(10, 2, 100)
    assert found.p == pytest.approx(0.03857421875)  # scipy.stats.binomtest(10, 12)
    assert (found.low, found.high) == pytest.approx(
        (12 / 100 * (2 * 0.5158622513139235 - 1), 12 / 100 * (2 * 0.9791374745403382 - 1))
    )
    assert mcnemar(5, 0, 100).low < 0 < mcnemar(6, 0, 100).low


@pytest.mark.parametrize("size", [5, 40])
def test_the_interval_holds_the_truth_as_often_as_it_says(size):
    draw = np.random.default_rng(13)
    held = 0
    for _ in range(400):
        found = improvement([(1.0, Pairs(0.3 + draw.exponential(1.0, size) - 1.0, np.ones(size)))])
        held += found.low <= 0.3 <= found.high
    assert held >= 370


def test_results_survive_their_file(tmp_path):
    made = results(sums=[True, False])
    made.write(tmp_path / "items.parquet")
    read = Items.read(tmp_path / "items.parquet")
    assert read.metrics.keys() == made.metrics.keys()
    assert read.metrics["task/sums"].right.tolist() == [True, False]
    assert read.metrics["heldout_loss"].by_tag() == made.metrics["heldout_loss"].by_tag()
