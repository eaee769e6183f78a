"""The stage `train` as an Airflow task whose ranks can save after Airflow kills the task."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError
from talaria.common.files import read_object
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.launch import diagnosis
from talaria.launch import stage as launch
from talaria.launch.accelerate_command import Machine
from talaria.runs.alarms import TrainingAlarms
from talaria.runs.folder import MLFLOW, RunPath
from talaria.runs.summary import last_activity, progress_line, summarize
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store

from talaria_airflow.notifiers.alert import Alert
from talaria_airflow.operators import links, training_stats
from talaria_airflow.operators.stage import StageOperator, given, lifelines, name_user
from talaria_airflow.operators.training_stats import TrainingStats

PROGRESS = "progress"
"""Key in the task state store (a tab of the task's page): step, loss and time left."""
SHOW_EVERY = 5.0  # seconds


class TaskPreempted(AirflowException):
    """The training was stopped by a signal; a retry resumes from its last checkpoint."""


class TaskCrashed(AirflowException):
    """The training failed; a retry resumes from its last checkpoint."""


class AccelerateLaunchOperator(StageOperator):
    """Trains beneath a reaper by `accelerate launch` and returns the output of the stage `train`.

    Whatever ends the task (mark failed, clear, a lost heartbeat, SIGKILL of the task's process, its supervisor, the worker or
    the scheduler), the ranks get `train.stop_grace` seconds to save a checkpoint, and then none is left. A retry waits for
    that and goes on from the checkpoint. The ranks' lines go to the task's log as they are written.

    Raises AirflowFailException, which is not retried, where settings or data have to change; TaskPreempted or TaskCrashed,
    which are AirflowExceptions, else.

    Parameters as of StageOperator, and these, which override the settings of the same meaning:

    :param num_processes: ranks on this machine; 0: one a GPU.
    :param num_machines: machines that train together, each by a task of its own in front of the same store.
    :param machine_rank: which of them this task is; 0 publishes the output.
    :param rendezvous: HOST:PORT where machine 0 listens.
    :param grace: seconds that ranks get to save (train.stop_grace).
    :param channels: the section `alerts` of a configuration, as a dict: who hears of a training in trouble while it runs.
    """

    template_fields = (*StageOperator.template_fields, "num_processes", "num_machines", "machine_rank", "rendezvous")
    operator_extra_links = (links.MlflowRunLink(), links.TrainingPageLink())
    ui_color = "#fde7c8"

    def __init__(
        self,
        *,
        num_processes: int | str | None = None,
        num_machines: int | str | None = None,
        machine_rank: int | str = 0,
        rendezvous: str | None = None,
        channels: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(stage="train", **kwargs)
        self.num_processes = num_processes
        self.num_machines = num_machines
        self.machine_rank = machine_rank
        self.rendezvous = rendezvous
        self.channels = channels
        self._next_look = 0.0
        self._counted: TrainingStats | None = None

    def make(self, context: Context, config: Config, store: Store, upstream: Mapping[str, Output]) -> Output:
        config, options = self.prepared(context, config)
        with as_attempt():
            if options["machine"].rank:
                return launch.follow(config, store, upstream, force=self.forced, **options)
            look = functools.partial(self.look, context)
            train = functools.partial(launch.run, on_look=look, **options)
            output = run_stage("train", config, store, upstream, force=self.forced, function=train)
        self.ended(context, output.path)
        return output

    def prepared(self, context: Context, config: Config) -> tuple[Config, dict[str, Any]]:
        """Return the configuration as this task trains it, and the options of `launch`."""
        name_user(context)
        links.show(context, links.TrainingPageLink, links.training_page(context))
        config = self._placed(config)
        self._alarms = TrainingAlarms(
            stall_seconds=config.alerts.stall_seconds,
            patience=config.alerts.patience,
            free_disk=config.alerts.free_disk_fraction,
            now=time.time(),
        )
        machine = Machine(int(self.machine_rank), self.rendezvous, self.interpreter, self.environment(context))
        return config, {"machine": machine, "on_line": self.hear, "stop": self._stop, "lifelines": lifelines()}

    def ended(self, context: Context, folder: Path) -> None:
        """Show and count what came since the last look. `folder`: where the training lies now."""
        self._show(context, folder)
        if self._counted:
            self._counted.send(folder)

    def _count(self, context: Context, folder: Path) -> None:
        """Send what Airflow's metrics have of the training."""
        if self._counted is None and training_stats.wanted():
            name = str(given("configure", self.config)["name"])
            self._counted = TrainingStats(folder, {"dag_id": context["dag_run"].dag_id, "config": name})
        if self._counted:
            self._counted.send(folder)

    def _placed(self, config: Config) -> Config:
        """Return the configuration with this task's number of ranks and machines and its grace period."""
        given = {"num_processes": self.num_processes, "num_machines": self.num_machines, "stop_grace": self.grace}
        tree = config.model_dump(mode="json")
        tree["train"] |= {name: value for name, value in given.items() if value is not None}
        return settings.parse(tree, f"task {self.task_id}")

    def look(self, context: Context, folder: Path) -> None:
        """Show how the training is doing, and tell of trouble; called several times a second."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + SHOW_EVERY
            self._show(context, folder)
            self._count(context, folder)
            for trouble in self._alarms.look(folder, time.time()):
                run = context["dag_run"]
                Alert("", self.channels).tell(f"{run.dag_id} {run.run_id}: {self.task_id}: {trouble}.")

    def _show(self, context: Context, folder: Path) -> None:
        """Show progress in the task state store, and the link to the MLflow run."""
        run = RunPath("", folder, finished=False)
        card = summarize(run, last_activity(run))  # that it lives is known here, so no clock has to tell
        try:
            if url := read_object(folder / MLFLOW).get("url"):
                links.show(context, links.MlflowRunLink, url)
            if card["step"]:
                context["task_state_store"].set(PROGRESS, progress_line(card))
        except AirflowRuntimeError as error:  # the API server hiccups; a display must not end a training
            self.log.warning("cannot show the progress: %s", error)


@contextmanager
def as_attempt() -> Iterator[None]:
    """Fail this attempt of the task where a training was stopped or crashed; a retry resumes it."""
    try:
        yield
    except diagnosis.Preempted as stopped:
        raise TaskPreempted(str(stopped)) from None
    except diagnosis.TrainingCrashed as crashed:
        raise TaskCrashed(str(crashed)) from None
