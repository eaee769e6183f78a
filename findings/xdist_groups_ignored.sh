#!/usr/bin/env bash
# pytest 9.2 with pytest-xdist: the mark `xdist_group` no longer keeps tests together, and nothing says so.
#
# Version:  pytest 9.2.0 beside 9.1.1, pytest-xdist 3.8.0 (the newest of each on 2026-11-27; 3.8.0 asks for pytest >= 7)
# Guess:    with `--dist loadgroup` the six tests of one group run in one worker.
# Seen:     with 9.1.1 they do. With 9.2.0 they are spread over both workers, without a warning: xdist writes the group into the
#           private `item._nodeid`, and node ids of pytest 9.2 are made from a structure that does not have it.
# Effect:   costly fixtures are set up once a worker, and tests that must not run side by side do. Talaria's suite took 15 min 43 s
#           instead of 11 min; it stays on pytest 9.1. `--dist loadfile` groups with both versions.
source "$(dirname "$0")/install.sh" pytest==9.1.1 pytest-xdist==3.8.0
cat >test_group.py <<'PY'
import os, pathlib, pytest

@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(6))
def test_one(number):
    with open("workers.txt", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
workers() {
    rm -f workers.txt
    "$work/venv/bin/python" -m pytest -q -n 2 --dist loadgroup test_group.py >log.txt 2>&1 || { tail -5 log.txt; exit 1; }
    ! grep -qi warning log.txt || { echo "there is a warning now"; exit 1; }
    sort -u workers.txt | wc -l
}
before=$(workers)
install pytest==9.2.0
after=$(workers)
echo "workers that ran the group: pytest 9.1.1: $before, pytest 9.2.0: $after"
[ "$before" = 1 ] && [ "$after" = 2 ]
