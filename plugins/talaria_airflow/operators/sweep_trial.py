"""A trial of a sweep as an Airflow task: a training that a held-out loss may end early."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from talaria.config import load as settings
from talaria.store.store import Store

from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator, as_attempt
from talaria_airflow.operators.lineage import of_output
from talaria_airflow.operators.stage import as_task_failure, given, given_output, store_root
from talaria_airflow.operators.xcom import storable

NAME = "trial_name"
"""What Airflow shows for a mapped task: `map_index_template="{{ trial_name }}"`."""


class SweepTrialOperator(AccelerateLaunchOperator):
    """Trains a trial and returns its outcome; killed, it behaves as AccelerateLaunchOperator does.

    A trial that stops early, or whose loss is not finite, is a result and no failure of the task.

    :param trial: `{"number": ...}` of the plan of `config`.
    :param references: outcomes of the sweep's references, for a trial that is compared with them.
    """

    template_fields = (*AccelerateLaunchOperator.template_fields, "trial", "references")

    def __init__(self, *, trial: Any, references: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trial = trial
        self.references = references

    def execute(self, context: Context) -> dict[str, Any]:
        from talaria.sweep.plan import plan
        from talaria.sweep.record import SweepRun
        from talaria.sweep.run import by_number, reference_curves
        from talaria.sweep.trial import run_trial
        from talaria.tracking.mlflow_client import tracking_uri

        with as_task_failure():
            config = settings.parse(given("configure", self.config), "configuration")
            store = Store(self.store or store_root())
            upstream = {name: given_output(store, name, value) for name, value in self.inputs.items()}
            trial = plan(config)[int(given("plan", self.trial)["number"]) - 1]
            context[NAME] = trial.label  # type: ignore[literal-required]
            placed, options = self.prepared(context, trial.config)
            references = reference_curves(config, by_number(list(self.references or ())), trial.number)
            look = functools.partial(self.look, context)
            with as_attempt():
                ours = dataclasses.replace(trial, config=placed)
                outcome = run_trial(ours, store, upstream, references, on_look=look, **options)
            SweepRun.open(config, store, upstream, tracking_uri(store.root)).nest(trial, outcome, upstream)
        self.ended(context, Path(outcome.folder))
        if outcome.state == "done":  # only then is it an output of the store
            self.made = [of_output({"path": outcome.folder, "key": outcome.key})]
        self.log.info("trial %s, %s: %s at step %s", trial.number, trial.label, outcome.state, outcome.step)
        return storable(outcome.as_json())
