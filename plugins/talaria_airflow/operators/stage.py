"""Run a stage as an Airflow task of its own process, beneath the reaper: killed at any moment, it leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.log import mask_secret
from talaria.common.errors import Unavailable, UserError
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.process import reaper, supervisor
from talaria.stages.run import made_before
from talaria.store.store import Output, Store
from talaria.tracking.lineage import USER
from talaria.workflow import tokenize_parts

from talaria_airflow.operators import links
from talaria_airflow.operators.lineage import EmitsLineage, of_output
from talaria_airflow.operators.xcom import storable

REFUSED = 2
"""The command line's exit code for what only the user can change."""


class StageOperator(EmitsLineage, BaseOperator):
    """Runs a stage by `talaria stage` and returns its output (path, key, facts), which an earlier run may have made.

    :param stage: a stage of pipeline/talaria/stages/table.py.
    :param config: the resolved configuration, a dict.
    :param inputs: stage -> what that stage's task returned.
    :param store: folder of all stage outputs; absent: TALARIA_STORE.
    :param force: make the output again even where it exists.
    :param python: interpreter of the stage; absent: the worker's.
    :param env: added to the stage's environment. Values may be templates; rendered ones are neither stored nor shown, so this
        is the place for secrets: `env={"HF_TOKEN": "{{ conn.hf.password }}"}`.
    :param grace: seconds between SIGTERM and SIGKILL.
    """

    template_fields: Sequence[str] = ("config", "inputs", "store", "force", "python", "grace")
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json", "inputs": "json"}
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Any],
        store: str | None = None,
        force: bool | str = False,
        python: str | None = None,
        env: Mapping[str, str] | None = None,
        grace: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.config = config
        self.inputs = inputs
        self.store = store
        self.force = force
        self.python = python
        self.env = env
        self.grace = grace
        self._stop = supervisor.Stop()

    def execute(self, context: Context) -> dict[str, Any]:
        with as_task_failure():
            config = settings.parse(given("configure", self.config), "configuration")
            store = Store(self.store or store_root())
            upstream = {name: given_output(store, name, value) for name, value in self.inputs.items()}
            output = self.make(context, config, store, upstream)
        self.log.info("%s: %s %s", self.stage, "reused" if output.reused else "made", output.path)
        self.made = [of_output(output.as_json())]
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {"key": output.key, "path": str(output.path), "reused": output.reused}
        return storable(output.as_json())

    def on_kill(self) -> None:
        """Tell the reaper and return: Airflow kills this process 5 s later, the reaper stays until the last one is gone."""
        self._stop.request()

    def make(self, context: Context, config: Config, store: Store, upstream: Mapping[str, Output]) -> Output:
        """Return the stage's output. Raises UserError for what only the user can change, AirflowException for anything else."""
        if not self.forced:
            with suppress(UserError):  # what it says here, in the worker's own environment, the stage may not
                if found := made_before(self.stage, config, store, upstream):
                    return found
        with tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
            folder = Path(scratch)
            (folder / "config.yaml").write_text(config.model_dump_json())
            words = ["stage", self.stage, str(folder / "config.yaml"), "--store", str(store.root)]
            words += ["--inputs", json.dumps({name: output.as_json() for name, output in upstream.items()})]
            words += ["--result", str(folder / "result.json")] + (["--force"] if self.forced else [])
            self.run_command(words, context, folder)
            return Output.from_json(json.loads((folder / "result.json").read_text()))

    def run_command(self, words: Sequence[str], context: Context, folder: Path) -> None:
        """Run `talaria WORDS` beneath the reaper; its lines go to the task's log, and to a file in `folder`.

        Raises UserError or Unavailable with the command's own sentence, AirflowException where it ended in another way.
        """
        lines: list[str] = []

        def hear(line: str) -> None:
            lines[:] = [*lines[-9:], line]
            self.hear(line)

        code = supervisor.run(
            [self.interpreter, "-P", "-m", "talaria.cli", *words],
            log=folder / "log",
            grace=30.0 if self.grace is None else float(self.grace),
            env={**supervisor.environment(), **self.environment(context)},
            stop=self._stop,
            on_line=hear,
            lifelines=lifelines(),
        )
        last = next((line.removeprefix("talaria: ") for line in reversed(lines) if line), "it said nothing")
        if code == REFUSED:
            raise UserError(last)
        if code == os.EX_TEMPFAIL:
            raise Unavailable(last)
        if code:
            raise AirflowException(f"{words[0]} {words[1]} ended with exit code {code}: {last}")

    def hear(self, line: str) -> None:
        self.log.info("%s", line)

    def environment(self, context: Context) -> dict[str, str]:
        """`env`, rendered here and not as a template field, whose values Airflow would store and show."""
        rendered: dict[str, str] = self.render_template(dict(self.env or {}), context)
        for name, value in rendered.items():
            mask_secret(value, name)
        return rendered

    @property
    def interpreter(self) -> str:
        return self.python or sys.executable

    @property
    def forced(self) -> bool:
        return str(self.force).lower() in ("true", "1")


class TokenizeOperator(StageOperator):
    """The stage `tokenize`, joined from its row ranges where there are any (tokenize.shards)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage=tokenize_parts.STAGE, **kwargs)

    def make(self, context: Context, config: Config, store: Store, upstream: Mapping[str, Output]) -> Output:
        if config.tokenize.shards == 1:
            return super().make(context, config, store, upstream)
        return tokenize_parts.join(config, store, upstream, force=self.forced)


class EvaluateOperator(StageOperator):
    """The stage `evaluate`, with a button that shows the answers of base and tuned model side by side."""

    operator_extra_links = (links.AnswersLink(),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage="evaluate", **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        made = super().execute(context)
        links.show(context, links.AnswersLink, links.answers_page(made["key"]))
        return made


def given(task: str, value: Any) -> Mapping[str, Any]:
    """Return what an upstream task returned. Raises UserError, naming Airflow's cure, where it returned nothing."""
    if not isinstance(value, Mapping):
        raise UserError(f"The task {task} has no result: it was marked as success, or skipped. Clear it to make one.")
    return value


def given_output(store: Store, stage: str, value: Any) -> Output:
    """Return what an upstream task returned, fetched from the remote where this machine lacks it.

    Raises UserError, naming Airflow's cure, where the task returned nothing or its files are gone: another attempt of this
    task would find the same.
    """
    output = Output.from_json(given(stage, value))
    if output.path.is_dir():
        return output
    if (found := store.find(stage, output.key)) is None:
        raise UserError(f"{output.path}: the output of stage {stage} is gone, pruned perhaps. Clear that task to make it again.")
    return found


@contextmanager
def as_task_failure() -> Iterator[None]:
    """Fail the task for good on a user's mistake, with the command line's sentence; anything else may be tried again."""
    try:
        yield
    except Unavailable:
        raise
    except UserError as error:
        raise AirflowFailException(str(error)) from None


def store_root() -> str:
    """TALARIA_STORE, which every worker has to see at the same path."""
    if not (root := os.environ.get("TALARIA_STORE")):
        raise UserError("TALARIA_STORE is not set; it names the folder of all stage outputs, shared by the workers.")
    return root


def name_user(context: Context) -> None:
    """Have what this task writes to MLflow name the person who triggered the run; of a scheduled one, the DAG's owner."""
    os.environ[USER] = context["dag_run"].triggering_user_name or ""


def lifelines() -> Sequence[int]:
    """The processes above this one without which nobody looks after the task: the supervisor, and what started it.

    The task runner's own end is the reaper's to see. A supervisor's parent counts if it is the scheduler (LocalExecutor) or
    the worker (Celery): those fork the supervisor within their own process group, which a shell or an init system does not.
    None for a DAG that is tested in process: above it is whoever runs the test.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CommsDecoder

    if not isinstance(getattr(task_runner, "SUPERVISOR_COMMS", None), CommsDecoder):
        return ()
    parent = os.getppid()
    found = reaper.alive(parent)
    if found is None or found.parent <= 1 or os.getpgid(found.parent) != os.getpgid(parent):
        return (parent,)
    return (parent, found.parent)
