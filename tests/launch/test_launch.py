"""How a launch ends, whatever ends it, and that the next one goes on from there. The trainer is a stub, the rest is real."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from talaria.common.errors import DataError, UserError
from talaria.common.locks import Busy, locked
from talaria.config import load as settings
from talaria.config.train_settings import Train
from talaria.launch import restarts as restarts_module
from talaria.launch import stage as launch
from talaria.launch import standby
from talaria.launch.accelerate_command import Machine, command
from talaria.launch.diagnosis import Preempted, TrainingCrashed, likely_cause
from talaria.launch.restarts import RankDeaths, Restarts
from talaria.process.supervisor import MARK, Stop
from talaria.runs.folder import GO
from talaria.stages.run import run_stage
from talaria.store.store import Store

from tests.support import process_trees

quick = pytest.mark.usefixtures("quick_launcher")
"""For tests in which accelerate's own ways play no part."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finished_training_gives_its_facts_and_its_lines(launches, ranks: int) -> None:
    facts = launches.start(ranks=ranks)
    assert facts["steps"] == 3
    assert facts["loss"] == pytest.approx(1 / 3)
    assert facts["tokens"] == 300
    assert facts["world_size"] == ranks
    assert sorted(line for line in launches.lines if line.startswith("rank")) == [
        f"rank {rank} of {ranks} from step 0" for rank in range(ranks)
    ]
    assert "step 2 loss 0.500" in launches.lines  # what a terminal shows of 'step 2\rstep 2 loss 0.500'
    assert json.loads((launches.output / "config.json").read_text())["name"] == "stub"
    assert not (launches.output / "lock").exists()
    assert process_trees.marked(launches.mark) == {}


@quick
def test_what_the_user_has_to_change_is_said_in_the_trainers_sentence(launches) -> None:
    with pytest.raises(UserError, match=r"^tokens/data\.arrow row 3: is empty\.$"):
        launches.start(at={2: "user"})


def test_a_crash_names_its_cause_and_the_next_start_goes_on(launches) -> None:
    with pytest.raises(TrainingCrashed, match=r"after step 1: RuntimeError: the loss is not finite \(log: .*/train\.log\)"):
        launches.start(ranks=2, at={2: "raise"})
    assert launches.status()["state"] == "failed"
    assert launches.status()["kind"] == "crash"
    launches.quick = True
    assert launches.start()["steps"] == 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_rank_ends_the_launch(launches, ranks: int) -> None:
    with pytest.raises(TrainingCrashed, match="a process was killed by signal 9"):
        launches.start(ranks=ranks, at={2: "kill"}, steps=1000)
    assert process_trees.marked(launches.mark) == {}
    assert launches.status()["state"] == "failed"


@quick
def test_ranks_that_die_are_started_again_until_no_new_step_comes(launches) -> None:
    launches.restarts = 1
    assert launches.start(ranks=2, at={2: "kill"})["steps"] == 3
    assert sum("The ranks are started again (start 1 of 1 without a new step)" in line for line in launches.lines) == 1
    assert "rank 0 of 2 from step 1" in launches.lines


@quick
def test_ranks_in_waiting_take_over_and_are_gone_when_the_launch_is(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worth_waiting", lambda gpus: True)
    monkeypatch.setattr(standby, "_AFTER", 0.0)
    launches.restarts = 1
    assert launches.start(ranks=2, steps=40, at={30: "kill"})["steps"] == 40
    assert launches.lines.count("a rank in waiting goes on") == 2
    assert launches.lines.count("rank 0 of 2 from step 29") == 1
    assert process_trees.marked(launches.mark) == {}


@quick
def test_ranks_in_waiting_that_have_ended_are_replaced_by_new_ones(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worth_waiting", lambda gpus: True)
    monkeypatch.setattr(standby, "_AFTER", 0.0)
    monkeypatch.setattr(launch.supervisor, "start", _first_and_then(launch.supervisor.start, 2, "exit 3"))
    launches.restarts = 1
    assert launches.start(ranks=2, steps=10, at={8: "kill"}, seconds=0.1)["steps"] == 10
    assert "a rank in waiting goes on" not in launches.lines


def test_ranks_in_waiting_hear_that_those_before_them_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "_AFTER", -1.0)
    started, told = list[Mapping[str, str]](), list[str]()
    alive = SimpleNamespace(process=SimpleNamespace(poll=lambda: None))
    waiting = standby.Standby(lambda more: started.append(more) or alive, tmp_path)  # type: ignore[func-returns-value, arg-type, return-value]
    stop = SimpleNamespace(end_now=lambda: told.append("end"))
    dead = iter([False, False, True])
    for _ in range(3):
        launch._look(tmp_path, lambda folder: None, [lambda: next(dead)], stop, waiting, SimpleNamespace(new_step=lambda: True))  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == (["go-1.dying"] if told else [])
    assert waiting.take() is alive
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go-1", "go-1.dying"]
    assert started == [{GO: str(tmp_path / "go-1")}]


def _first_and_then(start: Any, number: int, script: str) -> Any:
    """`start`, but the call of this number starts a shell script."""
    calls = iter(range(1, 1000))

    def started(command: Sequence[str], **how: Any) -> Any:
        return start(["sh", "-c", script] if next(calls) == number else command, **how)

    return started


@quick
def test_what_the_program_did_wrong_is_not_tried_again(launches) -> None:
    launches.restarts = 3
    with pytest.raises(TrainingCrashed, match="the loss is not finite"):
        launches.start(at={2: "raise"})
    assert not any("started again" in line for line in launches.lines)


def test_restarts_are_counted_since_the_last_new_step(tmp_path: Path) -> None:
    def made(step: int) -> None:
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")

    restarts = Restarts(Train(restarts=2), tmp_path)
    assert restarts.allowed()
    assert restarts.allowed()
    made(5)
    assert [restarts.allowed() for _ in range(3)] == [True, True, False]
    made(4)  # repeated, not new
    assert not restarts.allowed()


def test_a_rank_that_died_is_noticed_and_one_that_left_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts_module, "_KILLED", 0.0)
    deaths = RankDeaths(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as rank:
        note = tmp_path / "rank-0.pid"
        note.write_text(str(rank.pid))
        assert not deaths.survivors_must_end()
        rank.kill()
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        assert not deaths.survivors_must_end()
        assert deaths.survivors_must_end()
        assert not deaths.survivors_must_end()  # once
    note.unlink()
    assert not RankDeaths(tmp_path).survivors_must_end()


def test_survivors_of_a_rank_that_ended_itself_may_still_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts_module, "_KILLED", 0.0)
    deaths = RankDeaths(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "exit(70)"]) as rank:
        (tmp_path / "rank-0.pid").write_text(str(rank.pid))
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        assert [deaths.survivors_must_end() for _ in range(3)] == [False] * 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_told_to_stop_the_ranks_save_and_the_next_start_goes_on_from_there(launches, ranks: int) -> None:
    stop = Stop()
    with pytest.raises(Preempted, match="the next start goes on"):
        launches.start(ranks=ranks, stop=stop, on_line=lambda line: "step 2" in line and stop.request(), steps=1000)
    assert launches.status()["state"] == "preempted"
    assert not any("Traceback" in line for line in launches.lines)  # the launcher went with its ranks, without a fuss
    saved = launches.status()["step"]
    launches.quick = True
    launches.start(ranks=ranks, steps=saved + 2)
    assert f"rank 0 of {ranks} from step {saved}" in launches.lines
    assert launches.steps() == list(range(1, saved + 3))


@quick
@pytest.mark.parametrize("left", [0, 20])
def test_a_torn_status_is_no_obstacle(launches, left: int) -> None:
    with pytest.raises(Preempted):
        launches.start(stop=(stop := Stop()), on_line=lambda line: "step 2" in line and stop.request(), steps=1000)
    saved = launches.status()["step"]
    os.truncate(launches.output / "status.json", left)
    assert launches.start(steps=saved + 1)["steps"] == saved + 1
    assert f"rank 0 of 1 from step {saved}" in launches.lines


@quick
def test_deaf_ranks_are_gone_when_the_grace_period_is_over(launches) -> None:
    stop = Stop()
    with pytest.raises(Preempted):
        launches.start(
            ranks=2,
            grace=0.5,
            stop=stop,
            on_line=lambda line: "step 2" in line and stop.request(),
            steps=1000,
            ignore_sigterm=True,
        )
    assert process_trees.marked(launches.mark) == {}
    assert launches.status()["reason"] == "stopped before it could save"


@quick
def test_told_to_stop_before_anything_runs(launches) -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(Preempted):
        launches.start(stop=stop, steps=1000)
    assert process_trees.marked(launches.mark) == {}


@quick
def test_an_exception_of_the_listener_stops_the_ranks_first(launches) -> None:
    """A task's timeout, or a log that nobody reads any more: nothing runs on when the launch returns."""

    def fail(line: str) -> None:
        if "step 2" in line:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        launches.start(ranks=2, on_line=fail, steps=1000)
    assert process_trees.marked(launches.mark) == {}
    assert launches.status()["state"] == "preempted"


@quick
def test_when_reaper_and_ranks_lose_each_other_the_launch_still_clears_up(launches) -> None:
    def shoot(line: str) -> None:
        if "step 2" in line:
            reaper = next(pid for pid, argv in process_trees.marked(launches.mark).items() if "reaper.py" in " ".join(argv[:5]))
            os.kill(reaper, signal.SIGKILL)

    with pytest.raises(Preempted):
        launches.start(ranks=2, on_line=shoot, steps=1000)
    assert process_trees.marked(launches.mark) == {}


# A launching process of its own, to be shot or interrupted: the command line's way.
DRIVER = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from talaria.config import load as settings
from talaria.launch.stage import Machine, launch
root, tree, env = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
launch(settings.parse(tree, "test"), root / "tokens", root / "model", root / "output", machine=Machine(env=env),
       on_line=lambda line: print(line, flush=True))
"""


def drive(launches, **stub: object) -> subprocess.Popen[str]:
    """Another process that launches; returns when its ranks have made a few steps."""
    tree = launches.config(ranks=2).model_dump_json()
    env = json.dumps(dict(launches.machine(steps=1000, **stub).env))
    driver = subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER, str(launches.root), tree, env],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, process_trees.MARK: launches.mark},
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if "step 3" in line:
            return driver
    raise AssertionError(driver.communicate()[1])


@quick
def test_when_the_launching_process_is_killed_the_next_start_waits_for_the_save_and_goes_on(launches) -> None:
    driver = drive(launches, save_seconds=1)
    driver.kill()
    driver.wait()
    with pytest.raises(Busy), locked(launches.output / "lock", wait=0):
        pass  # the reaper holds it while the ranks save
    launches.start(ranks=2, steps=launches.steps()[-1] + 3)
    assert "waiting for an earlier training to save and leave" in launches.lines[0]
    assert launches.steps() == list(range(1, launches.steps()[-1] + 1))  # saved: no step was lost, none made twice
    kinds = [json.loads(line)["kind"] for line in (launches.output / "events.jsonl").read_text().splitlines()]
    assert kinds == ["start", "resume"]


@quick
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_line_lets_the_ranks_save(launches, number: signal.Signals) -> None:
    driver = drive(launches)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert "Preempted" in errors
    assert launches.status()["state"] == "preempted"
    assert process_trees.marked(launches.mark) == {}


@quick
def test_a_second_interrupt_does_not_wait_for_the_save(launches) -> None:
    driver = drive(launches, save_seconds=300)
    driver.send_signal(signal.SIGINT)
    process_trees.eventually(lambda: "received SIGTERM" in (launches.output / "train.log").read_text())
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert process_trees.marked(launches.mark) == {}


@quick
def test_a_folder_in_use_is_refused_after_the_grace_period(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talaria.launch.stage.SLACK", 0.2)
    with locked(launches.output / "lock"), pytest.raises(TrainingCrashed, match=f"is in use: .*process {os.getpid()}"):
        launches.start(grace=0.1)


@quick
def test_waiting_for_the_lock_ends_when_told_to_stop(launches) -> None:
    stop = Stop()
    with locked(launches.output / "lock"), pytest.raises(Preempted):
        launches.start(stop=stop, on_line=lambda line: threading.Timer(0.3, stop.request).start())


def test_inputs_that_are_none_are_refused_at_once(launches) -> None:
    (launches.root / "tokens" / "dataset_dict.json").unlink()
    with pytest.raises(DataError, match="tokens: not a tokens folder"):
        launches.start()
    assert not launches.output.exists()


@pytest.mark.parametrize("compiled", [True, False])
def test_what_ranks_compile_is_kept_where_python_may_not_leave_it_beside_the_source(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container with PYTHONDONTWRITEBYTECODE each launch would compile PyTorch and transformers anew."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    (tmp_path / "torch.pyc").touch()
    found = SimpleNamespace(origin=str(tmp_path / "torch.py"), cached=str(tmp_path / ("torch.pyc" if compiled else "no.pyc")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    _, env = command(Train(), tmp_path, tmp_path, tmp_path, Machine(), gpus=0)
    assert env.get("PYTHONDONTWRITEBYTECODE") == ("1" if compiled else None)
    assert env.get("PYTHONPYCACHEPREFIX") == (None if compiled else str(tmp_path / "talaria" / "bytecode"))


@quick
def test_secrets_of_airflow_do_not_reach_the_ranks(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:secret@host/db")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    seen = {}

    def look(line: str) -> None:
        if "step 1" in line:
            pid = (launches.output / "rank-0.pid").read_text()
            seen.update(item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0"))

    launches.start(on_line=look)
    assert seen["NCCL_DEBUG"] == "INFO"
    assert MARK in seen
    assert not any(name.startswith("AIRFLOW__") for name in seen)


def test_two_machines_train_together_and_the_first_publishes(launches) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{probe.getsockname()[1]}"
    store = Store(launches.root / "store")
    upstream = {
        name: store.run(name, name * 8, functools.partial(_copy, launches.root / folder), described_by={})
        for name, folder in (("tokenize", "tokens"), ("base", "model"))
    }
    config = settings.parse({"name": "stub", "train": {"num_processes": 1, "num_machines": 2}}, "test")
    lines: list[str] = []
    stop = Stop()

    def options(rank: int) -> dict[str, Any]:
        return {"machine": launches.machine(rank=rank, rendezvous=rendezvous), "stop": stop, "on_line": lines.append}

    with ThreadPoolExecutor() as machines:
        train = functools.partial(launch.run, **options(0))
        first = machines.submit(run_stage, "train", config, store, upstream, function=train)
        second = machines.submit(launch.follow, config, store, upstream, force=False, **options(1))
        for done in as_completed([first, second], timeout=120):
            if done.exception():
                stop.request()  # the other machine waits for it
            done.result()
        output = first.result()
        assert output.facts["world_size"] == 2
        assert second.result().path == output.path
    assert {"rank 0 of 2 from step 0", "rank 1 of 2 from step 0"} <= set(lines)
    assert launch.follow(config, store, upstream, force=False, **options(1)).key == output.key


def _copy(source: Path, folder: Path) -> dict[str, Any]:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return {}


# The command line, which needs no process to be checked.

HERE = Machine()


def flags(argv: list[str]) -> dict[str, str]:
    """The options of accelerate, up to the module that it runs."""
    options = argv[argv.index("accelerate.commands.launch") + 1 : argv.index("talaria.train") - 1]
    return {name: value for name, value in zip(options, [*options[1:], ""], strict=True) if name.startswith("--")}


def command_of(gpus: int, machine: Machine = HERE, **train: object) -> tuple[dict[str, str], dict[str, str]]:
    argv, env = command(Train(**train), Path("tokens"), Path("model"), Path("out"), machine, gpus=gpus)
    assert argv[0] == machine.python
    return flags(argv), env


def test_one_process_a_gpu_unless_told_otherwise() -> None:
    on_eight, env = command_of(8)
    assert on_eight["--num_processes"] == "8"
    assert "--multi_gpu" in on_eight
    assert "ACCELERATE_USE_CPU" not in env
    on_one, _ = command_of(1)
    assert on_one["--num_processes"] == "1"
    assert not {"--multi_gpu", "--cpu"} & on_one.keys()
    assert command_of(8, num_processes=2)[0]["--num_processes"] == "2"
    with pytest.raises(UserError, match="num_processes is 4, but this machine has 2 GPUs"):
        command_of(2, num_processes=4)


def test_ranks_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    one, env = command_of(0)
    assert one["--num_processes"] == "1"
    assert "--cpu" in one
    assert env["OMP_NUM_THREADS"] == "8"
    two, env = command_of(0, num_processes=2)
    assert "--multi_gpu" in two  # with --cpu, accelerate would start one process
    assert env["ACCELERATE_USE_CPU"] == "true"
    assert env["OMP_NUM_THREADS"] == "4"


def test_several_machines_meet_at_the_rendezvous() -> None:
    second, _ = command_of(8, Machine(rank=1, rendezvous="node0:29400"), num_machines=2)
    assert second["--num_processes"] == "16"  # accelerate wants the total
    assert second["--num_machines"] == "2"
    assert second["--machine_rank"] == "1"
    assert second["--main_process_ip"] == "node0"
    assert second["--main_process_port"] == "29400"
    assert second["--rdzv_backend"] == "static"  # c10d would put rank 0 on whichever machine
    with pytest.raises(UserError, match="HOST:PORT of machine 0"):
        command_of(8, num_machines=2)
    with pytest.raises(UserError, match="from 0 to 1"):
        command_of(8, Machine(rank=2, rendezvous="node0:29400"), num_machines=2)


def test_the_likely_cause() -> None:
    torchelastic = ["  exitcode  : -9 (pid: 4)", "  traceback : Signal 9 (SIGKILL) received by PID 4"]
    assert "for want of memory" in likely_cause(1, torchelastic, oom_kills=1)
    assert "by signal 9" in likely_cause(1, torchelastic, oom_kills=0)
    assert "by signal 9" in likely_cause(137, [], oom_kills=0)
    assert "lower train.max_tokens_per_device" in likely_cause(1, ["torch.OutOfMemoryError: CUDA out of memory. Tried"], 0)
    echoes = [
        "[rank1]: RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1",
        "[rank0]: ValueError: cannot reshape",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    ]
    assert likely_cause(1, echoes, oom_kills=0) == "ValueError: cannot reshape"
    assert likely_cause(1, ["/venv/bin/python: No module named accelerate"], oom_kills=0) == "No module named accelerate"
    assert likely_cause(128 + 11, [], oom_kills=0) == "a process ended by signal 11 (SIGSEGV)"
    assert likely_cause(3, ["nothing to see"], oom_kills=0) == "the launcher ended with exit code 3 and no process said why"
