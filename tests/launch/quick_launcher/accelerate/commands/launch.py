"""Stands in for `accelerate launch` where a test is about what is above or below it: five seconds of imports less.

Does what torchelastic does: each rank gets a session of its own, the first failure ends the others, and a signal that ended a
rank is named in the report.
"""

import os
import signal
import subprocess
import sys
import time

arguments = sys.argv[1:]
world = int(arguments[arguments.index("--num_processes") + 1])
module = arguments[arguments.index("-m") :]
ranks = [
    subprocess.Popen(
        [sys.executable, *module],
        start_new_session=True,
        env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
    )
    for rank in range(world)
]
signal.signal(signal.SIGTERM, lambda number, frame: [rank.terminate() for rank in ranks])
while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
    time.sleep(0.02)
failed = next((rank for rank in ranks if rank.returncode), None)
if failed:
    for rank in ranks:
        rank.terminate()
        rank.wait()
    if failed.returncode < 0:
        print(
            f"Signal {-failed.returncode} ({signal.Signals(-failed.returncode).name}) received by PID {failed.pid}",
            file=sys.stderr,
        )
    raise SystemExit("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")
