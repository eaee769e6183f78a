"""Text files are replaced whole: by a full disk not at all, by several writers by one of their texts."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from talaria.common.files import machine_refusal, write_atomically


def test_a_disk_that_is_full_leaves_the_old_text_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    write_atomically(file, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert file.read_text() == "old"


def test_two_writers_at_once_do_not_take_each_others_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_are_written = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(os, "fsync", lambda fd: both_are_written.wait())
    file = tmp_path / "digests.json"
    with ThreadPoolExecutor(2) as writers:  # two machines that train in one folder, as threads of one process
        for _ in writers.map(write_atomically, [file, file], ["one", "other"]):
            pass
    assert file.read_text() in ("one", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["digests.json"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/store/x"), "/store/x: read-only file system."),
        (OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/a", None, "/b"), "/b: invalid cross-device link."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left on device."),
        (MemoryError("malloc of size 64 failed"), "not enough memory: malloc of size 64 failed."),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/x"), None),
        (OSError("somebody's own"), None),
    ],
    ids=str,
)
def test_what_the_machine_refuses_is_a_sentence_and_what_we_did_wrong_is_none(error, sentence):
    assert machine_refusal(error) == sentence
