"""This rank's side of the process that writes its part of checkpoints (file_writer.py)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talaria.train.checkpoint import file_writer
from talaria.train.checkpoint.host_block import HostBlock


class WriteFailed(OSError):
    """A part of a checkpoint could not be written; the message says why."""


class WriterProcess:
    def __init__(self, blocks: Sequence[HostBlock], rank: int) -> None:
        self.rank = rank
        fds = [block.fd for block in blocks]
        self._process = subprocess.Popen(
            # -I -S: it needs neither this environment's packages nor its settings of Python
            [sys.executable, "-I", "-S", file_writer.__file__, str(blocks[0].size), *map(str, fds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, folder: Path, files: list[list[dict[str, Any]]], block: int = 0) -> dict[str, dict[str, Any]]:
        """Write files of what a block holds, flushed to the disk; name -> {"bytes", "sha256"}. Leaves Python to other threads.

        Raises WriteFailed.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            request = {"folder": str(folder), "rank": self.rank, "block": block, "files": files}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if "files" in answer:
            return dict(answer["files"])
        if answer.get("full"):
            raise WriteFailed("the disk is full")
        raise WriteFailed(answer.get("error") or f"the writing process ended with exit code {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self._process.stdin.close()
        self._process.wait()
