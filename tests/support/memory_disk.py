"""Temporary folders in memory, for as long as the tests run.

Most of what tests write are databases of a second, and each commit of SQLite waits two or three times for a disk to have it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""More than all tests leave there at a time; containers often have 64 MiB, and keep the disk."""


def use_memory() -> None:
    """Make temporary folders there from now on, in this process and those that it starts; a TMPDIR that is set stays."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    runs_programs = not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    if runs_programs and shutil.disk_usage(MEMORY).free >= ROOM:
        folder = MEMORY / f"tests-{os.getuid()}"  # not talaria-*: each training sweeps those that no launch holds
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
