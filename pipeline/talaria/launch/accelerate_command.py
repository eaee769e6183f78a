"""The command line of `accelerate launch` for a training folder, and the environment of its ranks."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import user_cache
from talaria.config.train_settings import Train
from talaria.process.supervisor import environment
from talaria.runs.folder import CONFIG

SLACK = 30.0  # seconds beyond the grace period: until the kernel has torn down what was killed
ACCELERATE_CONFIG = "accelerate.yaml"
RANKS_PER_CORE = 4
"""On CPU more ranks than cores gain nothing; a few times as many still end a trial of several ranks on a small machine."""
RANK_BYTES = 1 << 29
"""Of PyTorch and transformers once they are imported, rounded down."""
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

    def own(self, name: str) -> str:
        """Name this machine's own copy of a file in the folder that all share: config.json, config.1.json, ..."""
        stem, dot, ending = name.partition(".")
        return f"{stem}.{self.rank}{dot}{ending}" if self.rank else name


def command(
    train: Train, tokens: Path, model: Path, output: Path, machine: Machine, *, gpus: int
) -> tuple[list[str], dict[str, str]]:
    """Return the command line of `accelerate launch` on one machine, and its environment. gpus: number on this machine."""
    ranks = train.num_processes or max(gpus, 1)
    _require_ranks_fit(ranks, gpus)
    world = ranks * train.num_machines
    if world % train.context_parallel_size:
        raise UserError(
            f"train.context_parallel_size is {train.context_parallel_size}, but {world} ranks cannot be split into groups of so "
            "many; lower it, or leave it at 1."
        )
    arguments = {
        "config_file": output / machine.own(ACCELERATE_CONFIG),
        "num_processes": world,
        "num_machines": train.num_machines,
        "machine_rank": machine.rank,
        "mixed_precision": "no",  # talaria.train sees to precision, compilation and sharding itself
        "dynamo_backend": "no",
        "main_process_port": 0,  # a free one
    }
    if train.num_machines > 1:
        host, port = _rendezvous(machine, train.num_machines)
        arguments |= {"main_process_ip": host, "main_process_port": port, "rdzv_backend": "static"}
    # Two ranks on CPU start only as if they were GPUs: with --cpu, accelerate silently starts one.
    kind = ["--multi_gpu"] if world > 1 else [] if gpus else ["--cpu"]
    argv = [machine.python, "-P", "-m", "accelerate.commands.launch", *kind]
    argv += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    argv += ["-m", "talaria.train", "--config", str(output / machine.own(CONFIG))]
    argv += ["--tokens", str(tokens), "--model", str(model), "--output", str(output)]
    return argv, _environment(train, machine, ranks, gpus)


COUNT_GPUS = """
import ctypes, importlib.util, pathlib, runpy
torch = pathlib.Path(importlib.util.find_spec("torch").origin)
count = ctypes.c_int(-1)
try:
    if runpy.run_path(str(torch.with_name("version.py")))["cuda"]:
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        driver.cuDeviceGetCount(ctypes.byref(count))
except (OSError, KeyError):
    pass
if count.value < 0:
    import torch
    count.value = torch.cuda.device_count()
print(count.value)
"""
"""Asks the driver, which takes a tenth of the time that importing PyTorch does, where this PyTorch is one for CUDA."""


def gpu_count(python: str = sys.executable) -> int:
    """Return the number of GPUs that PyTorch sees. A separate process is asked, and only if there is a driver."""
    drivers = ("nvidia[0-9]*", "kfd", "dxg")
    if not any(any(Path("/dev").glob(name)) for name in drivers):
        return 0
    asked = subprocess.run([python, "-P", "-c", COUNT_GPUS], stdout=subprocess.PIPE, check=True, text=True)
    return int(asked.stdout)


OTHER_LAUNCHERS = re.compile(
    r"(ACCELERATE|FSDP|OMPI|PET|PMI|SLURM|TORCHELASTIC)_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
)
"""Variables of other launchers (of a pod, of a batch system, of a training that started this one). Ranks and their number are
decided here: what such a variable says of them would make ranks wait for others that nobody starts."""
KEPT = ("ACCELERATE_USE_CPU",)


def _environment(train: Train, machine: Machine, ranks: int, gpus: int) -> dict[str, str]:
    env = environment()  # with NCCL's settings as they are
    env = {name: value for name, value in env.items() if name in KEPT or not OTHER_LAUNCHERS.fullmatch(name)}
    if machine.python == sys.executable and not _finds_bytecode():
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env.setdefault("PYTHONPYCACHEPREFIX", str(user_cache("bytecode")))
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(train.stop_grace + SLACK))  # else it kills ranks 30 s after SIGTERM
    if not gpus:
        env["ACCELERATE_USE_CPU"] = "true"
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    return env | dict(machine.env or {})


def _finds_bytecode() -> bool:
    """Return whether Python finds PyTorch compiled, or may leave it where it looks: else each launch compiles it anew.

    A third of the time to the first step went to that in a container with PYTHONDONTWRITEBYTECODE (benchmarks/LOG.md).
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.cached or not torch.origin:
        return True
    return Path(torch.cached).exists() or not (sys.dont_write_bytecode or not os.access(Path(torch.origin).parent, os.W_OK))


def _require_ranks_fit(ranks: int, gpus: int) -> None:
    """Raise UserError where this machine cannot run so many ranks."""
    if gpus and ranks > gpus:
        raise UserError(f"train.num_processes is {ranks}, but this machine has {gpus} GPUs; lower it, or leave it at 0.")
    cores = len(os.sched_getaffinity(0))
    if not gpus and ranks > RANKS_PER_CORE * cores:
        raise UserError(
            f"train.num_processes is {ranks}, but this machine has {cores} cores and no GPU, which can run at most "
            f"{RANKS_PER_CORE * cores} ranks; lower it, or leave it at 0."
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if ranks * RANK_BYTES > memory:
        raise UserError(
            f"train.num_processes is {ranks}, but this machine has {memory / 2**30:.1f} GiB of memory, and a rank takes "
            f"{RANK_BYTES / 2**30:g} GiB before it holds a model; lower it, or leave it at 0."
        )


def _rendezvous(machine: Machine, machines: int) -> tuple[str, str]:
    host, _, port = (machine.rendezvous or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"train.num_machines is {machines}: name the rendezvous, HOST:PORT of machine 0, on each of them.")
    if not 0 <= machine.rank < machines:
        raise UserError(f"machine rank {machine.rank}: should be from 0 to {machines - 1}, train.num_machines being {machines}.")
    return host.strip("[]"), port
