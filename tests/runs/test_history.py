"""Cards, histories and curves of training folders."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import UserError
from talaria.runs.catalog import RunCatalog, find_run, list_runs, resolve_run
from talaria.runs.columns import Journal, thin
from talaria.runs.folder import RunPath
from talaria.runs.history import CURVES, SMOOTH, MovingAverage, Training, restarts
from talaria.runs.jsonl import sample
from talaria.runs.summary import SPARK_POINTS, summarize

from tests.support import synthetic_runs as synthetic


def followed(folder: Path) -> Training:
    training = Training(RunPath("k", folder, finished=False))
    training.refresh()
    return training


def append(path: Path, rows: Any) -> None:
    with path.open("a") as file:
        file.write(synthetic.lines(rows))


def test_a_card_says_how_far_and_how_long(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=200, total=400, pace=1.5, eval_every=50)
    card = summarize(RunPath("k", folder, finished=False), synthetic.START + 200 * 1.5 + 2)
    assert (card["state"], card["step"], card["total_steps"], card["world_size"]) == ("running", 200, 400, 8)
    assert card["eta_seconds"] == pytest.approx(200 * 1.5)
    assert card["quiet_seconds"] is None
    assert card["heldout_loss"] == pytest.approx(json.loads((folder / "evals.jsonl").read_text().splitlines()[-1])["loss"])


@pytest.mark.parametrize(("silence", "state", "quiet"), [(5, "running", False), (130, "running", True), (700, "lost", False)])
def test_silence_is_remarked_and_in_the_end_called_lost(tmp_path: Path, silence: float, state: str, quiet: bool) -> None:
    folder = synthetic.training(tmp_path, steps=20, total=40)
    last = synthetic.START + 20 * 1.3
    card = summarize(RunPath("k", folder, finished=False), last + silence)
    assert (card["state"], card["quiet_seconds"] is not None) == (state, quiet)


def test_the_silence_allowed_is_the_runs_own_hang_timeout(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=20, total=40, hang_timeout=3600.0)
    assert summarize(RunPath("k", folder, finished=False), synthetic.START + 1000)["state"] == "running"


def test_a_folder_with_nothing_in_it_is_starting(tmp_path: Path) -> None:
    card = summarize(RunPath("k", tmp_path, finished=False), tmp_path.stat().st_mtime)
    assert card["state"] == "starting"
    assert card["spark"] == []
    assert RunCatalog(tmp_path).open(RunPath("k", tmp_path, finished=False)).history()["events"] == []


def test_torn_status_and_metrics_show_what_is_there(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=50, total=100)
    (folder / "status.json").write_text('{"state": "runn')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "loss": 1.')
    card = summarize(RunPath("k", folder, finished=False), synthetic.START + 60)
    assert (card["state"], card["step"]) == ("starting", 50)
    assert followed(folder).metrics.steps[-1] == 50


@pytest.mark.parametrize("steps", [1, 5, 40, 3000])
def test_a_sample_spans_the_file_at_any_length(tmp_path: Path, steps: int) -> None:
    folder = synthetic.training(tmp_path, steps=steps, total=steps)
    taken = [row["step"] for row in sample(folder / "metrics.jsonl", SPARK_POINTS)]
    assert taken[0] == 1
    assert taken[-1] == steps
    assert len(taken) == min(steps, SPARK_POINTS)
    assert taken == sorted(set(taken))


def test_pieces_joined_are_the_whole(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=60, total=200)
    training = followed(folder)
    whole = training.series({"loss": 500})
    append(folder / "metrics.jsonl", synthetic.rows(61, 90, total=200))
    training.refresh()
    piece = training.series({"loss": 500}, since=whole["cursor"])
    assert (whole["whole"], piece["whole"]) == (True, False)
    assert piece["curves"]["loss"]["step"] == list(range(61, 91))
    everything = followed(folder).series({"loss": 500})
    assert whole["curves"]["loss"]["y"] + piece["curves"]["loss"]["y"] == everything["curves"]["loss"]["y"]
    assert training.series({"loss": 500}, since=piece["cursor"])["curves"]["loss"]["step"] == []


def test_after_a_rewind_the_whole_history_is_sent_again(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=60, total=200)
    training = followed(folder)
    cursor = training.series({"loss": 500})["cursor"]
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:50]
    (folder / "rewound").write_text("".join(kept))
    (folder / "rewound").replace(folder / "metrics.jsonl")
    append(folder / "metrics.jsonl", synthetic.rows(51, 70, total=200, start=synthetic.START + 500))
    training.refresh()
    answer = training.series({"loss": 500}, since=cursor)
    assert answer["whole"]
    assert answer["curves"]["loss"]["step"] == list(range(1, 71))
    assert followed(folder).series({"loss": 500}, since=cursor)["whole"]  # another process, with no memory of this one


def test_an_evaluation_that_comes_after_its_step_is_not_missed(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=50, total=200, eval_every=500)
    training = followed(folder)
    cursor = training.series({"loss": 10})["cursor"]
    append(folder / "evals.jsonl", [{"step": 50, "loss": 1.25, "time": synthetic.START}])
    training.refresh()
    assert training.series({"heldout_loss": 10}, since=cursor)["curves"]["heldout_loss"]["y"] == [1.25]


def test_axes_measure_steps_tokens_and_hours(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=100, total=100, pace=36.0, eval_every=50)
    training = followed(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"loss": 500, "heldout_loss": 500}
    assert "x" not in training.series(names)["curves"]["loss"]
    tokens = training.series(names, axis="tokens")["curves"]
    assert tokens["loss"]["x"][-1] == sum(row["tokens"] for row in rows)
    assert tokens["heldout_loss"]["x"][0] == sum(row["tokens"] for row in rows[:50])
    hours = training.series(names, axis="hours")["curves"]
    assert hours["loss"]["x"][-1] == pytest.approx(99 * 36 / 3600)
    assert hours["heldout_loss"]["x"][0] == pytest.approx(49 * 36 / 3600)


def test_hours_never_run_backwards(tmp_path: Path) -> None:
    """The clock of the machine that trains was put back by two hours in the middle."""
    folder = synthetic.training(tmp_path, steps=4, total=4, pace=36.0)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[2:]:
        row["time"] -= 7200
    (folder / "metrics.jsonl").write_text(synthetic.lines(rows))
    assert followed(folder).series({"loss": 10}, axis="hours")["curves"]["loss"]["x"] == pytest.approx([0, 0.01, 0.01, 0.02])


def test_a_closer_look_shows_each_step_of_the_stretch(tmp_path: Path) -> None:
    training = followed(synthetic.training(tmp_path, steps=5000, total=5000))
    close = training.series({"loss": 100}, between=(2000, 2100))["curves"]["loss"]["step"]
    assert close == list(range(2000, 2102))


def moving_average(values: array[float], span: int) -> array[float]:
    average = MovingAverage(span)
    average.extend(values)
    return average.values


def test_the_moving_average_is_unbiased_and_ignores_gaps(tmp_path: Path) -> None:
    constant = moving_average(array("d", [2.0, float("nan"), 2.0, 2.0]), 50)
    assert list(constant) == pytest.approx([2.0] * 4)
    step = moving_average(array("d", [0.0] * 10 + [1.0] * 200), 10)
    assert step[9] == 0
    assert step[-1] == pytest.approx(1, abs=1e-6)
    training = followed(synthetic.training(tmp_path, steps=300, total=300))
    smooth = training.series({"loss": 500}, smooth=("loss", 20))["curves"][SMOOTH]
    assert smooth["y"] == [float(f"{value:.6g}") for value in moving_average(training.metrics.column("loss"), 20)]


@pytest.mark.parametrize("axis", ["step", "tokens", "hours"])
def test_a_live_look_costs_what_came_since_however_long_the_training(
    tmp_path: Path, axis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are read and rows that are averaged or summed up, not time."""
    folder = synthetic.training(tmp_path, steps=20_000, total=40_000)
    training = followed(folder)
    view: dict[str, Any] = {"buckets": dict.fromkeys(CURVES, 300), "axis": axis, "smooth": ("loss", 10_000)}
    training.series(**view)
    training.history()
    cursor = training.cursor()
    append(folder / "metrics.jsonl", synthetic.rows(20_001, 20_003, total=40_000))

    averaged: list[int] = []
    whole = MovingAverage.extend
    monkeypatch.setattr(MovingAverage, "extend", lambda self, values: (averaged.append(len(values)), whole(self, values))[1])
    parsed: list[int] = []
    take = Journal._take
    monkeypatch.setattr(Journal, "_take", lambda self, lines: (parsed.append(len(lines)), take(self, lines))[1])
    before = bytes_read()
    training.refresh()
    curves = training.series(**view, since=cursor)["curves"]
    training.history()
    assert averaged == [3]
    assert sum(parsed) < 2_000
    assert bytes_read() - before < 200_000 < (folder / "metrics.jsonl").stat().st_size / 20
    assert len(curves["loss"]["y"]) == len(curves[SMOOTH]["y"]) == 3


def bytes_read() -> int:
    """By this process so far, from files and elsewhere."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_restarts_say_why_it_had_stopped() -> None:
    events = [
        {"kind": "start", "step": 0, "time": 1.0},
        {"kind": "preempted", "step": 5, "time": 2.0, "message": "SIGTERM"},
        {"kind": "resume", "step": 5, "time": 3.0},
        {"kind": "checkpoint", "step": 9, "time": 4.0},
        {"kind": "resume", "step": 9, "time": 5.0},
    ]
    first, second = restarts(events)
    assert (first["step"], first["why"]) == (5, "SIGTERM")
    assert second["step"] == 9
    assert "without a word" in second["why"]


def test_history_sums_up(tmp_path: Path) -> None:
    folder = synthetic.training(tmp_path, steps=120, total=200, restart_at=60, save_every=50, eval_every=40)
    history = followed(folder).history()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    assert history["tokens"] == sum(row["tokens"] for row in rows)
    assert history["best_heldout"]["loss"] == min(row["loss"] for row in evals)
    assert history["checkpoints"] == {"count": 2, "last_step": 100}
    assert [one["why"] for one in history["restarts"]] == ["SIGTERM: saved and stopped"]
    assert history["settings"]["train.lr"] == 1e-5
    assert history["cost"]["gpu_hours"] == pytest.approx(8 * 120 * 1.3 / 3600)


def test_places_are_found_newest_first_and_nothing_else(tmp_path: Path) -> None:
    synthetic.finished(tmp_path, 1, start=synthetic.START)
    synthetic.running(tmp_path, 2, start=synthetic.START + 1e6)
    (tmp_path / "train" / "not-a-key").mkdir()
    (tmp_path / ".work" / f"train-{synthetic.key(3)}-abc").mkdir()
    (tmp_path / ".work" / f"tokenize-{synthetic.key(4)}").mkdir()
    assert [run.key for run in list_runs(tmp_path)] == [synthetic.key(2), synthetic.key(1)]
    assert [card["state"] for card in RunCatalog(tmp_path).summaries(10)] == ["lost", "done"]
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["..", "../train", "/etc", "", "0" * 31, "G" * 32, f"{'0' * 30}/.", f"{'0' * 32}\n"])
def test_nothing_but_a_key_locates_a_run(tmp_path: Path, name: str) -> None:
    synthetic.finished(tmp_path, 1)
    assert find_run(tmp_path, name) is None


def test_a_run_is_named_by_the_beginning_of_its_key_or_by_its_folder(tmp_path: Path) -> None:
    synthetic.finished(tmp_path, 1)
    synthetic.finished(tmp_path, 2)
    assert resolve_run(tmp_path, "00000001").key == synthetic.key(1)
    assert resolve_run(tmp_path, str(tmp_path / "train" / synthetic.key(2))).folder.name == synthetic.key(2)
    with pytest.raises(UserError, match="begins the keys of 2 runs"):
        resolve_run(tmp_path, "0000")
    with pytest.raises(UserError, match=r"no run in .* begins with 'abc'"):
        resolve_run(tmp_path, "abc")


def test_a_library_reads_on_and_survives_publication(tmp_path: Path) -> None:
    folder = synthetic.running(tmp_path, 1, steps=30, total=60)
    catalog = RunCatalog(tmp_path)
    run = find_run(tmp_path, synthetic.key(1))
    assert run
    training = catalog.open(run)
    training.refresh()
    append(folder / "metrics.jsonl", synthetic.rows(31, 40, total=60))
    assert catalog.open(run) is training
    training.refresh()
    assert training.metrics.steps[-1] == 40
    (tmp_path / "train").mkdir()
    shutil.move(folder, tmp_path / "train" / synthetic.key(1))
    moved = find_run(tmp_path, synthetic.key(1))
    assert moved
    assert moved.finished
    published = catalog.open(moved)
    published.refresh()
    assert published.metrics.steps[-1] == 40


def test_a_long_history_draws_from_few_points_with_its_spike(tmp_path: Path) -> None:
    training = followed(synthetic.training(tmp_path, steps=20_000, total=20_000, spikes={13_337: 9.5}))
    curve = training.series({"loss": 300})["curves"]["loss"]
    assert len(curve["y"]) <= 602
    assert curve["y"][curve["step"].index(13_337)] == 9.5
    assert len(thin(training.metrics.column("loss"), 300)) == len(curve["y"])


@pytest.mark.parametrize("axis", ["step", "tokens", "hours"])
def test_what_is_read_on_equals_what_is_read_anew(tmp_path: Path, axis: Any) -> None:
    folder = synthetic.training(tmp_path, steps=500, total=900)
    followed_on = followed(folder)
    view: dict[str, Any] = {"buckets": {"loss": 2000, "mfu": 2000}, "axis": axis, "smooth": ("loss", 7)}
    followed_on.series(**view)
    append(folder / "metrics.jsonl", synthetic.rows(501, 600, total=900))
    for repeated in (range(601, 700), range(550, 650)):  # goes on, then a resumed training repeats the last steps
        cursor = followed_on.cursor()
        append(folder / "metrics.jsonl", synthetic.rows(repeated.start, repeated.stop, total=900))
        followed_on.refresh()
        anew = followed(folder)
        assert followed_on.history() == anew.history()
        assert set(followed_on.metrics.names()) == set(anew.metrics.names())
        assert followed_on.series(**view) == anew.series(**view)
        piece, whole = followed_on.series(**view, since=cursor)["curves"][SMOOTH], anew.series(**view)["curves"][SMOOTH]
        assert piece["y"] == pytest.approx(whole["y"][-len(piece["y"]) :], rel=1e-5)
