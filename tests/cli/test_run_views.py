"""`talaria runs`, `watch` and `compare`, as text."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from talaria.cli import run_views
from talaria.cli.terminal_plot import Line, chart
from talaria.common.errors import UserError
from talaria.runs.summary import duration

from tests.support import synthetic_runs as synthetic


def console(width: int = 100, *, interactive: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=40, force_terminal=interactive)


def text(printed: Console) -> str:
    assert isinstance(printed.file, io.StringIO)
    return printed.file.getvalue()


def test_runs_are_listed_newest_first_and_fit_eighty_columns(tmp_path: Path) -> None:
    synthetic.finished(tmp_path, 1, name="a-name-that-is-much-too-long-for-a-column", start=synthetic.START)
    synthetic.running(tmp_path, 2, start=time.time() - 260)
    out = console(80)
    run_views.show_runs(tmp_path, out)
    heading, first, second, *rest = text(out).splitlines()
    assert rest == []
    assert first.split()[:4] == [synthetic.key(2)[:8], "qwen3-4b-base", "running", "200/400"]
    assert first.rstrip().endswith("left")
    assert second.startswith(synthetic.key(1)[:8])
    assert second.rstrip().endswith("ago")
    assert max(map(len, (heading, first, second))) <= 80


def test_an_empty_store_and_an_unknown_metric_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training yet"):
        run_views.show_runs(tmp_path, console())
    synthetic.finished(tmp_path, 1)
    with pytest.raises(UserError, match="unknown metric 'accuracy'"):
        run_views.watch(tmp_path, synthetic.key(1), console(), metric="accuracy")
    with pytest.raises(UserError, match="2 to 6 runs"):
        run_views.compare(tmp_path, [synthetic.key(1)], console())


def test_watch_draws_once_where_there_is_no_terminal(tmp_path: Path) -> None:
    synthetic.running(tmp_path, 1, restart_at=60, start=time.time() - 260)
    out = console()
    run_views.watch(tmp_path, "00000001", out)
    shown = text(out)
    assert "step 200 of 400" in shown
    assert "restarted at step 60: SIGTERM: saved and stopped" in shown
    assert any("\u2800" <= char <= "\u28ff" for char in shown), "a curve of braille dots"


def test_watch_follows_a_run_until_it_is_published(tmp_path: Path) -> None:
    folder = synthetic.running(tmp_path, 1, steps=200, total=200, start=time.time() - 260)
    out = console(interactive=True)
    watching = threading.Thread(target=run_views.watch, args=(tmp_path, "00000001", out), kwargs={"every": 0.02}, daemon=True)
    watching.start()
    while "running" not in text(out):
        assert watching.is_alive()
        time.sleep(0.01)
    (tmp_path / "train").mkdir()
    shutil.move(folder, tmp_path / "train" / synthetic.key(1))
    watching.join(60)
    assert not watching.is_alive()
    last_frame = text(out).rpartition("\x1b[?1049l")[2]  # what stays when the full screen is left
    assert "done" in last_frame


def test_compare_lays_runs_side_by_side(tmp_path: Path) -> None:
    synthetic.finished(tmp_path, 1, lr=1e-5)
    synthetic.finished(tmp_path, 2, lr=2e-5, seed=3)
    out = console()
    run_views.compare(tmp_path, ["00000001", "00000002"], out, axis="tokens")
    rows = {line.split()[0]: line.split()[1:] for line in text(out).splitlines() if line.split()}
    assert rows["train.lr"] == ["1e-05", "2e-05"]
    assert "train.epochs" not in rows
    assert rows["steps"] == ["200", "200"]


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "talaria.cli", "watch", "abc", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "begins with 'abc'" in done.stderr


def test_what_the_machine_refuses_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, where a folder should be")
    command = [sys.executable, "-m", "talaria.cli", "stage", "download", "tiny", "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/store" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "models:/small@champion", "--prompt", "Hello"],
        ["promote", "small"],
        ["rollback", "small", "--reason", "wrong"],
        ["prune", "small", "--keep", "1"],
        ["serve", "models:/small@champion"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_on_models_makes_no_database_where_there_is_none(tmp_path: Path, words: list[str]) -> None:
    """In a folder of the user's own, with nothing set: it says what to set, and leaves nothing there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TALARIA_"))}
    command = [sys.executable, "-m", "talaria.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("there is no such database; set MLFLOW_TRACKING_URI, or name the store by --store.\n")
    assert list(tmp_path.iterdir()) == []


def test_the_commands_load_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    synthetic.finished(tmp_path, 1)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; from talaria.cli import run_views;"
        f"run_views.watch(Path({str(tmp_path)!r}), '0000', Console());"
        "print({'torch', 'mlflow', 'numpy', 'polars', 'transformers'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("light")


def test_a_chart_of_one_point_or_none_is_drawn(tmp_path: Path) -> None:
    out = console()
    out.print(chart([Line([1], [2.5], "blue+")], 60, 10))
    out.print(chart([Line([], [], "blue+")], 60, 10))
    assert "2.5" in text(out)
    assert "no such values yet" in text(out)


@pytest.mark.parametrize(
    ("seconds", "written"), [(None, "–"), (0.4, "0 s"), (61, "1 min 1 s"), (3_600, "1 h 0 min"), (90_000, "1 d 1 h")]
)
def test_durations_are_for_people(seconds: float | None, written: str) -> None:
    assert duration(seconds) == written
