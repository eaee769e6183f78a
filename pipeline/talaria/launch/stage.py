"""Start `accelerate launch` for a training folder, beneath a reaper and under the folder's lock, and say how it ended.

No torch here: this runs in the command line's process and in Airflow's task process. The ranks run `talaria.train`, and tell
their outcome in status.json, since torchelastic flattens exit codes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.base_model.inspection import require_usable
from talaria.base_model.tokenizer_fit import require_tokenizer_fits, tokenizer_of
from talaria.common.errors import DataError, UserError
from talaria.common.files import MANIFEST, write_atomically
from talaria.common.locks import Busy, in_use, locked
from talaria.common.user_code import module_digest
from talaria.config.schema import Config
from talaria.launch import checkpoint_mirror, standby
from talaria.launch.accelerate_command import ACCELERATE, ACCELERATE_CONFIG, SLACK, Machine, command, gpu_count
from talaria.launch.diagnosis import Preempted, TrainingCrashed, facts, is_echo, likely_cause, oom_kills
from talaria.launch.host_memory import host_memory
from talaria.launch.input_check import InputCheck, checked_inputs
from talaria.launch.launcher_chatter import LauncherChatter
from talaria.launch.restarts import RankDeaths, Restarts
from talaria.process import supervisor
from talaria.process.supervisor import Started, Stop
from talaria.runs.folder import CONFIG, HOST_MEMORY, LOCK, LOG, METRICS, MODEL, RunFolder
from talaria.runs.jsonl import tail
from talaria.stages.table import STAGES, key_of
from talaria.store.store import Output, Store
from talaria.tracking.tracker import Tracker

LAST_LINES = 400
PUBLISHING = 3600.0  # seconds that machine 0 may take to hash and move what was trained
HERE = Machine()


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def fingerprint(config: Config) -> Any:
    """Return what decides the result beside settings and inputs: the digest of the module with the user's own loss."""
    return {"loss": module_digest("train.loss", config.train.loss)} if ":" in config.train.loss else None


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path, **options: Any) -> dict[str, Any]:
    """Run the stage `train`; options are those of `launch`."""
    return launch(config, inputs["tokenize"], inputs["base"], out_dir, **options)


def follow(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool, **options: Any) -> Output:
    """Run the stage `train` on every machine but the first, which publishes the output: train, then wait for it."""
    key, _ = key_of(STAGES["train"], config, {name: output.key for name, output in upstream.items()})
    if not force and (found := store.find("train", key)):
        return found
    former = _inode(store.place("train", key))
    run(config, {name: output.path for name, output in upstream.items()}, store.work("train", key), **options)
    deadline = time.monotonic() + PUBLISHING
    while time.monotonic() < deadline:
        if (found := store.here("train", key)) and _inode(found.path) != former:
            return found
        time.sleep(1.0)
    raise TrainingCrashed(f"Training is done, but machine 0 has not published {store.place('train', key)} in {PUBLISHING:g} s.")


def launch(
    config: Config,
    tokens: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    on_line: Callable[[str], None] = _to_stderr,
    on_look: Callable[[Path], None] = lambda folder: None,
    machine: Machine = HERE,
    stop: Stop | None = None,
    lifelines: Sequence[int] = (),
) -> dict[str, Any]:
    """Train in the folder `output`, going on from what is there, and return the facts of the finished training.

    Waits for the folder's lock while an earlier launch still saves. `on_line` gets what the ranks print, `on_look` the folder,
    several times a second; `stop` ends the ranks (absent: SIGTERM and Ctrl-C do); `lifelines` as of `supervisor.start`.

    With several machines, each launches in the same folder on a shared disk; machine 0 keeps the status and the facts.

    Raises Preempted (the same again goes on from the last checkpoint), UserError (a retry cannot help), TrainingCrashed.
    """
    tokens, model, output = _tokens(Path(tokens)), _model(model), Path(output).absolute()
    require_usable(model)
    require_tokenizer_fits(tokenizer_of(tokens, model), model)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = Stop()
            stack.enter_context(supervisor.stopped_by_signals(stop))
        job = _Job(config, tokens, model, output, machine, stop, on_line, on_look, lifelines)
        lock = stack.enter_context(_sole_use(output / machine.own(LOCK), config.train.stop_grace, on_line, stop))
        check = stack.enter_context(checked_inputs(config, tokens, model, output))
        mirror = job.mirror(check) if machine.rank == 0 else None
        if mirror:
            mirror.fetch()
        identity = check.before_ranks()
        if identity and _done(identity, output):
            return facts(output)
        # The reaper inherits the locks, for the ranks' sake: they hold as long as one of these lives.
        locks = [lock, *stack.enter_context(in_use(tokens / MANIFEST, model / MANIFEST))]
        gpus = gpu_count(machine.python)
        argv, env = command(config.train, tokens, model, output, machine, gpus=gpus)
        memory = stack.enter_context(host_memory(output))
        if memory:
            env[HOST_MEMORY] = str(memory[0])
            locks.append(memory[1])
        if machine.rank == 0:
            stack.enter_context(Tracker(config, {"tokenize": tokens, "base": model}, output, on_line=on_line))
        if mirror:
            stack.enter_context(mirror)
        start = functools.partial(job.start, argv, env, locks)
        return _train(job, check, start, memory[0] if memory else None, waits=worth_waiting(gpus))


@dataclass(frozen=True)
class _Job:
    """A call of `launch`, its paths absolute."""

    config: Config
    tokens: Path
    model: Path
    output: Path
    machine: Machine
    stop: Stop
    on_line: Callable[[str], None]
    on_look: Callable[[Path], None]
    lifelines: Sequence[int]

    @property
    def log(self) -> Path:
        return self.output / self.machine.own(LOG)

    def start(self, argv: Sequence[str], env: Mapping[str, str], locks: Sequence[int], more: Mapping[str, str]) -> Started:
        """Start the launcher; `more`: what its environment has beside `env`."""
        how: dict[str, Any] = {"log": self.log, "grace": self.config.train.stop_grace, "inherit": locks}
        return supervisor.start(argv, env={**env, **more}, lifelines=self.lifelines, **how)

    def mirror(self, check: InputCheck) -> checkpoint_mirror.Mirror | None:
        patience = self.config.train.stop_grace
        return checkpoint_mirror.of_store(self.output, check.identity, on_line=self.on_line, patience=patience)


def _train(
    job: _Job, check: InputCheck, start: Callable[[Mapping[str, str]], Started], memory: Path | None, *, waits: bool
) -> dict[str, Any]:
    """Start the ranks, and again where they died and that may help; `waits`: whether others wait to take over from them.

    memory: the folder in which they leave their state, if anywhere.
    """
    output, machine = job.output, job.machine
    restarts = Restarts(job.config.train, output)
    with contextlib.closing(standby.Standby(start, memory if restarts.possible and waits else None)) as waiting:
        while True:
            _prepare(job.config, output, machine)
            lost = RankDeaths(memory).survivors_must_end, check.refused
            begin, log, before = job.log.stat().st_size if job.log.exists() else 0, _Log(job.on_line), oom_kills()
            look = functools.partial(_look, output, job.on_look, lost, job.stop, waiting, restarts)
            code = supervisor.follow(waiting.take() or start({}), stop=job.stop, on_line=log.hear, on_look=look, begin=begin)
            log.close()
            check.require()
            if machine.rank and code == 0 and not RunFolder(output).status():
                return {}  # machine 0 has published the folder already
            try:
                return _outcome(output, code, log.lines, oom_kills() - before, job.stop)
            except TrainingCrashed as crash:
                if not (crash.by_machine and restarts.allowed()):
                    raise
                job.on_line(f"{crash} The ranks are started again ({restarts}).")


class _Log:
    """Keeps the last lines of a launch, to tell its cause of death, and hands on those that are not the launcher's own."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.lines = deque[str](maxlen=LAST_LINES)
        self._on_line, self._chatter = on_line, LauncherChatter()

    def hear(self, line: str) -> None:
        self.lines.append(line)
        self._show(self._chatter.lines(line))

    def close(self) -> None:
        self._show(self._chatter.rest())

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._on_line(line)


def _look(
    output: Path,
    on_look: Callable[[Path], None],
    lost: Iterable[Callable[[], bool]],
    stop: Stop,
    waiting: standby.Standby,
    restarts: Restarts,
) -> None:
    on_look(output)
    waiting.look(restarts.new_step)
    if any(is_lost() for is_lost in lost):
        stop.end_now()
        waiting.dying()


def worth_waiting(gpus: int) -> bool:
    """Return whether ranks in waiting are started: without GPUs, ranks share few cores and little memory."""
    return gpus > 0


@contextlib.contextmanager
def _sole_use(path: Path, grace: float, on_line: Callable[[str], None], stop: Stop) -> Iterator[int]:
    """Hold the lock of a training folder; wait for a holder that is still saving, at most for its grace period."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(
                locked(
                    path,
                    wait=grace + SLACK,
                    on_wait=lambda holder: on_line(f"waiting for an earlier training to save and leave: {holder}"),
                    give_up=lambda: stop.requested,
                )
            )
        except Busy as busy:
            if stop.requested:
                raise Preempted("Stopped while waiting for an earlier training in the same folder to leave.") from None
            raise TrainingCrashed(f"{path.parent} is in use: {busy}; stop that training, or choose another folder.") from None
        yield lock


def _done(identity: str, output: Path) -> bool:
    """Return whether the folder has this training, finished. Raises UserError if it has another one."""
    status = RunFolder(output).status()
    if status.get("identity", identity) != identity:
        raise UserError(
            f"{output}: holds a training with other data, another base model or other settings; choose another --output."
        )
    return status.get("state") == "done" and (output / MODEL).is_dir()


def _prepare(config: Config, output: Path, machine: Machine) -> None:
    """Write the files that the ranks read, and the status of a training that is about to start."""
    write_atomically(output / machine.own(CONFIG), config.model_dump_json(indent=1))
    write_atomically(output / machine.own(ACCELERATE_CONFIG), ACCELERATE)
    if machine.rank == 0:
        names = {"dag_id": "AIRFLOW_CTX_DAG_ID", "run_id": "AIRFLOW_CTX_DAG_RUN_ID"}
        airflow = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        RunFolder(output).set_status("running", reason=None, kind=None, airflow=airflow or None)


def _outcome(output: Path, code: int, lines: Sequence[str], killed: int, stop: Stop) -> dict[str, Any]:
    """Return the facts of a finished training, or raise the exception for how it ended."""
    folder = RunFolder(output)
    status = folder.status()
    state, reason = status.get("state"), status.get("reason") or ""
    step = next((row["step"] for row in reversed(tail(output / METRICS))), 0)
    if state == "done":
        return facts(output)
    if state == "failed" and status["kind"] == "user":
        raise UserError(reason)
    if state == "preempted" or stop.requested:
        if state != "preempted":  # it did not come to saving
            folder.set_status("preempted", step=step, reason="stopped before it could save", kind=None)
        raise Preempted(f"Training was told to stop at step {step}; the next start goes on from its last checkpoint.")
    if state == "running" or is_echo(reason):
        reason = likely_cause(code, lines, killed)
        folder.set_status("failed", step=step, reason=reason, kind="crash")
        folder.event("failed", reason, step, reason_kind="crash")
    raise TrainingCrashed(f"Training failed after step {step}: {reason.rstrip('.')} (log: {output / LOG}).")


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def _tokens(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{folder}: not a tokens folder (no state.json); make one with `talaria tokenize`.")
    return folder.absolute()


def _model(model: str | Path) -> Path:
    """Return the folder of a model; download it from the hub if the name is not a folder."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").exists():
            raise DataError(f"{model}: not a model folder (no config.json).")
        return Path(model).absolute()
    from talaria.base_model.hf_folder import PATTERNS
    from talaria.common.hub import snapshot

    return snapshot(str(model), "main", PATTERNS)[0]
