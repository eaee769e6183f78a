"""`talaria sweep`: run the trials one after the other, and give the best to the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.files import MANIFEST
from talaria.common.locks import in_use
from talaria.config.schema import Config
from talaria.launch import stage as launch
from talaria.stages.run import run_stage
from talaria.stages.table import STAGES
from talaria.store.store import Output, Store
from talaria.sweep.early_stop import Curve
from talaria.sweep.plan import plan
from talaria.sweep.record import SweepRun
from talaria.sweep.trial import Outcome, Train, run_trial
from talaria.tracking.mlflow_client import tracking_uri
from talaria.workflow.forecast.forecast import forecast, refuse
from talaria.workflow.run_all import run_all

SHARED = tuple(name for name in STAGES if name not in ("train", "evaluate"))
"""Stages whose outputs all trials share."""


def sweep(config: Config, store: Store, *, on_line: Callable[[str], None] = print, train: Train = launch.run) -> dict[str, Any]:
    """Run every trial of `config.sweep`, then evaluate, register and promote the best as `run_all` does.

    What an earlier run has trained is not trained again; a trial that was interrupted goes on from its checkpoint.
    Raises UserError before anything is made, DataError where no trial came to its end.
    """
    trials = plan(config)
    uri = tracking_uri(store.root)
    refuse(forecast(trials[0].config, store, uri=uri))
    with ExitStack() as stack:
        shared: dict[str, Output] = {}
        for name in SHARED:
            shared[name] = output = run_stage(name, config, store, shared)
            stack.enter_context(in_use(output.path / MANIFEST))  # against pruning, until the best is registered
            on_line(f"{name:9} {'reused' if output.reused else f'{output.seconds:.1f} s'}  {output.path}")
        parent = SweepRun.open(config, store, shared, uri)
        outcomes: list[Outcome] = []
        for trial in trials:
            on_line(f"trial {trial.number} of {len(trials)}: {trial.label}")
            outcome = run_trial(trial, store, shared, reference_curves(config, outcomes, trial.number), train=train)
            parent.nest(trial, outcome, shared)
            outcomes.append(outcome)
            stack.enter_context(in_use(Path(outcome.folder) / MANIFEST))
            on_line(f"trial {trial.number} {told(outcome)}")
        best = best_of(outcomes)
        parent.close(outcomes, best)
        on_line(f"best: trial {best.number}, {trials[best.number - 1].label}, held-out loss {best.loss:.4f}")
        facts = run_all(trials[best.number - 1].config, store, on_line=on_line)
    return {
        "trials": [outcome.as_json() for outcome in outcomes],
        "best": best.number,
        "run_id": parent.run_id,
        "run_url": parent.url,
        **{name: facts[name] for name in ("evaluate", "register", "promote")},
    }


def reference_curves(config: Config, outcomes: Sequence[Outcome], number: int) -> list[Curve]:
    """Return the curves that trial `number` is compared with: of the references that came to their end; none for a reference."""
    if number <= config.sweep.references:
        return []
    return [outcome.curve for outcome in outcomes if outcome.number <= config.sweep.references and outcome.state == "done"]


def best_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the trial with the lowest held-out loss among those that came to their end; the earlier of equals.

    Raises DataError where there is none.
    """
    ended = [outcome for outcome in outcomes if outcome.state == "done" and outcome.loss is not None]
    if not ended:
        reasons = "; ".join(f"trial {outcome.number}: {outcome.reason}" for outcome in outcomes)
        raise DataError(f"No trial of the sweep came to its end ({reasons}).")
    return min(ended, key=lambda outcome: (outcome.loss, outcome.number))


def told(outcome: Outcome) -> str:
    """Say in a line how a trial ended."""
    loss = "" if outcome.loss is None else f", held-out loss {outcome.loss:.4f}"
    again = " (reused)" if outcome.reused else ""
    why = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.state}{again} at step {outcome.step}{loss}{why}"


def by_number(outcomes: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Return outcomes from their JSON, in the order of the plan."""
    return sorted(map(Outcome.from_json, outcomes), key=lambda outcome: outcome.number)
