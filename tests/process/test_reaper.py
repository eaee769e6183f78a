"""The reaper, with real processes: sessions of their own, deaf ranks, and parents that are shot."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from talaria.process import reaper

from tests.support import process_trees

# A launcher as torchelastic is one: each rank in a session of its own. On SIGTERM a rank saves, or is deaf to it.
LAUNCHER = """# launcher
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", open(sys.argv[1]).read(), *sys.argv[2:], str(n)], start_new_session=True)
         for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
RANK = """
import signal, sys, time
from pathlib import Path
folder, seconds, deaf, rank = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "deaf", sys.argv[4]
asked = []
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: asked.append(1))
(folder / f"up-{rank}").touch()
while not asked:
    time.sleep(0.01)
time.sleep(seconds)
(folder / f"saved-{rank}").write_text(str(len(asked)))
"""
# What stands above the reaper and is shot: it starts the reaper and waits.
PARENT = "# parent\nimport subprocess, sys; sys.exit(subprocess.Popen(sys.argv[1:], start_new_session=True).wait())"


@dataclass
class Run:
    """A parent, its reaper, a launcher and two ranks."""

    folder: Path
    mark: str = field(default_factory=process_trees.new_mark)

    def start(self, *, grace: float, saving: float = 0.0, deaf: bool = False, watch: tuple[int, ...] = ()) -> None:
        (self.folder / "rank.py").write_text(RANK)
        options = ["--grace", str(grace), "--log", str(self.folder / "log")]
        for pid in watch:
            options += ["--watch", str(pid)]
        launcher = [sys.executable, "-c", LAUNCHER, str(self.folder / "rank.py"), str(self.folder), str(saving)]
        command = [sys.executable, reaper.__file__, *options, "--", *launcher, "deaf" if deaf else "hears"]
        environment = {**os.environ, process_trees.MARK: self.mark}
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT, *command], env=environment)
        process_trees.eventually(lambda: all((self.folder / f"up-{rank}").exists() for rank in range(2)))

    def pid(self, role: str) -> int:
        """role: parent, reaper or launcher."""
        told = {"reaper": (1, reaper.__file__)}.get(role, (2, f"# {role}"))
        return next(pid for pid, argv in process_trees.marked(self.mark).items() if argv[told[0]].startswith(told[1]))

    def all_gone(self, within: float) -> None:
        process_trees.eventually(lambda: not process_trees.marked(self.mark), within)

    def saved(self) -> list[str]:
        """How often each rank that saved was asked to."""
        return [path.read_text() for path in sorted(self.folder.glob("saved-*"))]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    process_trees.kill_marked(run.mark)
    run.parent.wait()


def test_when_the_parent_is_killed_the_ranks_save_and_nothing_is_left(run: Run) -> None:
    run.start(grace=60, saving=0.3)
    run.parent.kill()
    run.all_gone(within=10)
    assert run.saved() == ["1", "1"]  # each was asked once
    assert "the parent process ended; the processes get 60 s" in run.log


def test_deaf_ranks_are_killed_when_the_grace_period_is_over(run: Run) -> None:
    run.start(grace=0.5, deaf=True)
    run.parent.kill()
    run.all_gone(within=10)
    assert run.saved() == []
    assert "out of time; killing" in run.log


def test_a_slow_save_is_cut_off_by_the_grace_period(run: Run) -> None:
    run.start(grace=0.5, saving=60)
    os.kill(run.pid("reaper"), signal.SIGTERM)
    run.all_gone(within=10)
    assert run.saved() == []


def test_asked_twice_it_still_waits(run: Run) -> None:
    """Airflow's SIGTERM comes first, the parent's death 5 s later: the second must not end the grace period."""
    run.start(grace=60, saving=0.6)
    os.kill(run.pid("reaper"), signal.SIGTERM)
    run.parent.kill()
    run.all_gone(within=10)
    assert run.saved() == ["1", "1"]


def test_sigquit_ends_the_grace_period(run: Run) -> None:
    run.start(grace=60, saving=60)
    os.kill(run.pid("reaper"), signal.SIGTERM)
    process_trees.eventually(lambda: "received SIGTERM" in run.log)
    os.kill(run.pid("reaper"), signal.SIGQUIT)
    run.all_gone(within=10)


def test_when_the_launcher_is_killed_its_orphaned_ranks_save(run: Run) -> None:
    run.start(grace=60)
    os.kill(run.pid("launcher"), signal.SIGKILL)
    run.all_gone(within=10)
    assert run.saved() == ["1", "1"]
    assert run.parent.wait() == 128 + signal.SIGKILL
    assert "the launcher ended with exit code 137 and left processes behind" in run.log


def test_when_a_watched_process_ends_the_ranks_save(run: Run) -> None:
    """The chain above the parent: Airflow's supervisor, and the scheduler or worker that started it."""
    supervisor = subprocess.Popen(["sleep", "60"])
    run.start(grace=60, watch=(supervisor.pid,))
    supervisor.kill()
    supervisor.wait()
    run.all_gone(within=10)
    assert run.saved() == ["1", "1"]


def test_when_the_reaper_itself_is_killed_the_launcher_is_told(run: Run) -> None:
    run.start(grace=60)
    launcher = run.pid("launcher")
    os.kill(run.pid("reaper"), signal.SIGKILL)
    process_trees.eventually(lambda: launcher not in process_trees.marked(run.mark))


def supervise(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return subprocess.run(
        [sys.executable, "-m", "talaria.process.reaper", *flags, "--", *command], capture_output=True, text=True, timeout=60
    )


def test_the_exit_code_is_the_commands() -> None:
    assert supervise("true").returncode == 0
    assert supervise("sh", "-c", "exit 7").returncode == 7
    assert supervise("sh", "-c", "kill -11 $$").returncode == 128 + 11
    missing = supervise("/no/such/command")
    assert missing.returncode == 127
    assert "/no/such/command: No such file or directory" in missing.stderr


def test_what_the_command_leaves_behind_is_gone_when_it_returns() -> None:
    mark = process_trees.new_mark()
    os.environ[process_trees.MARK] = mark
    try:
        assert supervise("sh", "-c", "setsid sleep 60 & setsid sh -c 'sleep 60 & sleep 60' & exit 3", grace=5).returncode == 3
    finally:
        del os.environ[process_trees.MARK]
    assert process_trees.marked(mark) == {}


def test_nothing_starts_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in ("parent", "watch"):
        ended = supervise("touch", str(tmp_path / "started"), **{name: gone.pid})
        assert "nothing was started" in ended.stderr
    assert not (tmp_path / "started").exists()


def test_the_command_gets_signals_as_usual_and_no_stray_descriptor(tmp_path: Path) -> None:
    """The reaper blocks signals and inherits locks; neither may reach the command."""
    with (tmp_path / "lock").open("w") as lock:
        ask = "import os, signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), sorted(os.listdir('/proc/self/fd')))"
        command = [sys.executable, "-m", "talaria.process.reaper", "--", sys.executable, "-c", ask]
        seen = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock.fileno()], timeout=60).stdout
    assert seen.strip() == "set() ['0', '1', '2', '3']"  # 3 is the listing's own


def test_a_process_whose_first_thread_has_ended_is_not_gone_before_the_others_are() -> None:
    """So looks one that was killed while the kernel takes back its memory: a zombie, which holds all that it had."""
    ends = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    first_ends = f"import ctypes, threading; threading.Thread(target=input).start(); ctypes.CDLL(None).syscall({ends}, 0)"
    with subprocess.Popen([sys.executable, "-c", first_ends], stdin=subprocess.PIPE) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert reaper.alive(process.pid)
        process.kill()
        while reaper.alive(process.pid):
            time.sleep(0.01)
