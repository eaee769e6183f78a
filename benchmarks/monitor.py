"""The page "Training" with a history of 100,000 steps: what a look costs the api-server, and what is sent.

    python benchmarks/monitor.py [STEPS]

CPU seconds of this process (the reading is plain Python, the same that the api-server does) and bytes before compression.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic_core import to_json
from talaria.runs.catalog import find_run
from talaria.runs.history import CURVES, Training
from talaria.runs.summary import summarize
from talaria_airflow.monitor.app import FOCUS_BUCKETS, SMALL_BUCKETS

from tests.support import synthetic_runs as synthetic

BUCKETS = {name: FOCUS_BUCKETS if name == "loss" else SMALL_BUCKETS for name in CURVES}
SPAN = 200


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        folder = synthetic.running(Path(store), 1, steps=steps, total=2 * steps, save_every=1000, eval_every=1000)
        run = find_run(Path(store), synthetic.key(1))
        assert run
        print(f"metrics.jsonl: {(folder / 'metrics.jsonl').stat().st_size / 1e6:.1f} MB, {steps:,} steps")
        seconds, _ = timed(lambda: summarize(run, time.time()))
        print(f"card in the list: {1000 * seconds:.1f} ms")
        training = Training(run)
        seconds, _ = timed(training.refresh)
        print(f"first look, parsing: {seconds:.2f} s")
        seconds, whole = timed(lambda: training.series(BUCKETS, smooth=("loss", SPAN)))
        print(f"first look, curves: {seconds:.3f} s, {len(to_json(whole)) / 1e3:.1f} kB")
        seconds, facts = timed(training.history)
        print(f"first look, facts: {seconds:.3f} s, {len(to_json(facts)) / 1e3:.1f} kB")

        def look() -> tuple[bytes, bytes]:
            training.refresh()
            return to_json(training.series(BUCKETS, since=whole["cursor"], smooth=("loss", SPAN))), to_json(training.history())

        for later in range(3):
            with (folder / "metrics.jsonl").open("a") as file:
                added = synthetic.rows(steps + 3 * later + 1, steps + 3 * later + 3, total=2 * steps)
                file.write(synthetic.lines(added))
            seconds, (curves, history) = timed(look)
            told = f"{len(curves) / 1e3:.1f} kB of curves, {len(history) / 1e3:.1f} kB beside them"
            print(f"later look: {1000 * seconds:.1f} ms, {told}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
