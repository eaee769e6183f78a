"""Start `accelerate launch` for a training folder, beneath a reaper and under the folder's lock, and say how it ended.

No torch here: this runs in the command line's process and in Airflow's task process. The ranks run `pipeline.train`, and tell
their outcome in status.json, since torchelastic flattens exit codes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import supervised
from pipeline.config import Config, Train
from pipeline.errors import DataError, UserError
from pipeline.locks import Busy, locked
from pipeline.runs.glance import tail
from pipeline.store import write_atomically
from pipeline.supervised import Stop
from pipeline.tracking import Tracker
from pipeline.train.folder import METRICS, RunFolder
from pipeline.train.identity import run_identity
from pipeline.train.outcome import Preempted, TrainingCrashed, facts, is_echo, likely_cause, oom_kills

SLACK = 30.0  # seconds beyond the grace period: until the kernel has torn down what was killed
LAST_LINES = 400
ACCELERATE = """\
# `accelerate launch` takes the rest from its command line; this file keeps the user's own default_config.yaml out of it.
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: 'no'
use_cpu: false
debug: false
num_processes: 1
"""


@dataclass(frozen=True)
class Machine:
    """One of the machines that train together."""

    rank: int = 0
    rendezvous: str | None = None
    """HOST:PORT where machine 0 listens; needed when train.num_machines is above 1."""
    python: str = sys.executable
    """Interpreter of the ranks."""
    env: Mapping[str, str] | None = None
    """Added to the ranks' environment."""


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path, **options: Any) -> dict[str, Any]:
    """The train stage; options as of `launch`."""
    return launch(config, inputs["tokenize"], inputs["base"], out_dir, **options)


def launch(
    config: Config,
    tokens: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    on_line: Callable[[str], None],
    on_look: Callable[[Tracker | None], None] = lambda tracker: None,
    machine: Machine = Machine(),
    stop: Stop | None = None,
    lifelines: Sequence[int] = (),
) -> dict[str, Any]:
    """Train in the folder `output`, going on from what is there, and return the facts of the finished training.

    Waits for the folder's lock while an earlier launch still saves. `on_line` gets what the ranks print, `on_look` is called
    several times a second; `stop` ends the ranks (absent: SIGTERM and Ctrl-C do); `lifelines` as of `supervised.run`.

    Raises Preempted (the same again goes on from the last checkpoint), UserError (a retry cannot help), TrainingCrashed.
    """
    tokens, model, output = _tokens(Path(tokens)), _model(model), Path(output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    suffix = f".{machine.rank}" if machine.rank else ""
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = Stop()
            stack.enter_context(supervised.stopped_by_signals(stop))
        lock = stack.enter_context(_sole_use(output / f"lock{suffix}", config.train.stop_grace, on_line, stop))
        if _done(config, tokens, model, output):
            return facts(output)
        argv, env = command(config.train, tokens, model, output, machine, gpus=gpu_count(machine.python))
        _prepare(config, output, machine)
        before, lines = oom_kills(), deque[str](maxlen=LAST_LINES)

        def hear(line: str) -> None:
            lines.append(line)
            on_line(line)

        tracker = None
        if machine.rank == 0:
            inputs = {"tokenize": tokens, "base": model}
            tracker = stack.enter_context(Tracker(config, inputs, output, on_line=on_line))
        code = supervised.run(
            argv,
            log=output / f"train{suffix}.log",
            grace=config.train.stop_grace,
            env=env,
            stop=stop,
            on_line=hear,
            on_look=functools.partial(on_look, tracker),
            inherit=[lock],
            lifelines=lifelines,
        )
        return _outcome(output, code, lines, oom_kills() - before, stop)


def command(
    train: Train, tokens: Path, model: Path, output: Path, machine: Machine, *, gpus: int
) -> tuple[list[str], dict[str, str]]:
    """The command line of `accelerate launch` on one machine, and its environment. gpus: how many this machine has."""
    ranks = train.num_processes or max(gpus, 1)
    if gpus and ranks > gpus:
        raise UserError(f"train.num_processes is {ranks}, but this machine has {gpus} GPUs; lower it, or leave it at 0.")
    world = ranks * train.num_machines
    arguments = {
        "config_file": output / "accelerate.yaml",
        "num_processes": world,
        "num_machines": train.num_machines,
        "machine_rank": machine.rank,
        "mixed_precision": "no",  # pipeline.train sees to precision, compilation and sharding itself
        "dynamo_backend": "no",
        "main_process_port": 0,  # a free one
    }
    if train.num_machines > 1:
        host, port = _rendezvous(machine, train.num_machines)
        arguments |= {"main_process_ip": host, "main_process_port": port, "rdzv_backend": "c10d"}
    # Two ranks on CPU start only as if they were GPUs: with --cpu, accelerate silently starts one.
    kind = ["--multi_gpu"] if world > 1 else [] if gpus else ["--cpu"]
    argv = [machine.python, "-m", "accelerate.commands.launch", *kind]
    argv += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    argv += ["-m", "pipeline.train", "--config", str(output / "config.json")]
    argv += ["--tokens", str(tokens), "--model", str(model), "--output", str(output)]
    return argv, _environment(train, machine, ranks, gpus)


def gpu_count(python: str = sys.executable) -> int:
    """GPUs that PyTorch sees here. It is asked in a process of its own, and only where there is a driver at all."""
    drivers = ("nvidia[0-9]*", "kfd", "dxg")
    if not any(any(Path("/dev").glob(name)) for name in drivers):
        return 0
    ask = [python, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(ask, stdout=subprocess.PIPE, check=True, text=True).stdout)


def _environment(train: Train, machine: Machine, ranks: int, gpus: int) -> dict[str, str]:
    # Airflow's own settings hold secrets (database, JWT) that are no business of the ranks. NCCL's pass through untouched.
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    env["PYTHONUNBUFFERED"] = "1"
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(train.stop_grace + SLACK))  # else it kills ranks 30 s after SIGTERM
    if not gpus:
        env["ACCELERATE_USE_CPU"] = "true"
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    return env | dict(machine.env or {})


def _rendezvous(machine: Machine, machines: int) -> tuple[str, str]:
    host, _, port = (machine.rendezvous or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"train.num_machines is {machines}: name the rendezvous, HOST:PORT of machine 0, on each of them.")
    if not 0 <= machine.rank < machines:
        raise UserError(f"machine rank {machine.rank}: should be from 0 to {machines - 1}, train.num_machines being {machines}.")
    return host.strip("[]"), port


@contextlib.contextmanager
def _sole_use(path: Path, grace: float, on_line: Callable[[str], None], stop: Stop) -> Iterator[int]:
    """The lock of a training folder. Whoever holds it is still saving, at most for its grace period, or plainly training."""
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


def _done(config: Config, tokens: Path, model: Path, output: Path) -> bool:
    """Whether the folder holds this training, finished. Raises UserError where it holds another one."""
    status = RunFolder(output).status() or {}
    identity = run_identity(config, tokens, model)
    if status.get("identity", identity) != identity:
        raise UserError(
            f"{output}: holds a training with other data, another base model or other settings; choose another --output."
        )
    return status.get("state") == "done" and (output / "model").is_dir()


def _prepare(config: Config, output: Path, machine: Machine) -> None:
    """What the ranks read, and a status that says that they are about to start."""
    write_atomically(output / "config.json", config.model_dump_json(indent=1))
    write_atomically(output / "accelerate.yaml", ACCELERATE)
    if machine.rank == 0:
        names = {"dag_id": "AIRFLOW_CTX_DAG_ID", "run_id": "AIRFLOW_CTX_DAG_RUN_ID"}
        airflow = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        RunFolder(output).set_status("running", reason=None, kind=None, airflow=airflow or None)


def _outcome(output: Path, code: int, lines: Sequence[str], killed: int, stop: Stop) -> dict[str, Any]:
    """The facts of a finished training, or the exception that its end calls for."""
    folder = RunFolder(output)
    status = folder.status() or {}
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
    raise TrainingCrashed(f"Training failed after step {step}: {reason.rstrip('.')} (log: {output / 'train.log'}).")


def _tokens(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{folder}: not a tokens folder (no state.json); make one with `talaria tokenize`.")
    return folder.absolute()


def _model(model: str | Path) -> Path:
    """The folder of a model, fetched from the hub where the name is not a folder's."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").exists():
            raise DataError(f"{model}: not a model folder (no config.json).")
        return Path(model).absolute()
    from pipeline.base import PATTERNS
    from pipeline.hub import snapshot

    return snapshot(str(model), "main", PATTERNS)[0]
