"""The newest checkpoint of a training, copied to object storage beside the training and fetched where a machine has none.

A thread of the launcher looks for checkpoints that are complete, so the ranks never wait for the network. What it sends is a
snapshot: the checkpoint, the kept models, and the small files as they are then, which is all that another machine needs to go
on as if it were the same one. Its manifest comes last, replaces the former snapshot's, and then that one's files go.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from talaria.common.files import MANIFEST, file_digest, fsync, link_or_copy
from talaria.common.threads import Poller
from talaria.runs.folder import CHECKPOINTS, EXPORTS, MARKER, RunFolder, exported, newest_checkpoint
from talaria.store.manifest import store_of
from talaria.store.remote import Remote, RemoteError
from talaria.store.store import Store


class Mirror:
    """Keeps the copy of a training folder up to date while the body of the `with` runs.

    At the end it sends the last checkpoint of a training that is not done, for at most `patience` seconds. A failure is told
    once and tried again; it never ends a training.
    """

    def __init__(
        self,
        remote: Remote,
        place: str,
        folder: Path,
        identity: str,
        *,
        on_line: Callable[[str], None],
        patience: float,
        poll: float = 1.0,
    ) -> None:
        self.remote, self.place, self.folder, self.identity = remote, place, folder, identity
        self._say, self._patience = on_line, patience
        self._known: dict[tuple[str, int, int], str] = {}
        self._sent = ""
        self._poller = Poller(
            "talaria-mirror",
            self._send_newest,
            every=poll,
            errors=(RemoteError, OSError),
            on_failure=lambda error: self._say(
                f"{error}; training goes on, and its checkpoints are uploaded when that works again."
            ),
        )

    def fetch(self) -> None:
        """Put the snapshot into the folder, if that has no checkpoint of its own. The checkpoint comes last, in one rename."""
        if newest_checkpoint(self.folder):
            return
        try:
            manifest = self._snapshot()
            if manifest is None:
                return
            with self._scratch() as scratch:
                self.remote.pull(self.place, manifest, scratch)
                _move_in(scratch, self.folder)
        except RemoteError as error:
            self._say(f"{error}; training does not go on from a checkpoint there.")
            return
        self._say(f"step {manifest['step']} is fetched from {self.remote.address}/{self.place}")

    def __enter__(self) -> Mirror:
        self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        if _is_done(self.folder):
            self._poller.abandon()
        self._poller.stop(self._patience)

    def _send_newest(self, last: bool) -> None:
        """Upload the newest complete checkpoint, unless that is done."""
        newest = newest_checkpoint(self.folder)
        if newest is None or newest.name == self._sent or self._poller.abandoned:
            return
        if last:
            self._say(f"uploading {newest.name} before leaving")
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile: a newer one is there
            self._send(newest)
            self._sent = newest.name

    def _send(self, checkpoint: Path) -> None:
        """Upload a snapshot, unless a later one is there: of a start that this one could not fetch."""
        with self._scratch() as scratch:
            marker = _link_snapshot(self.folder, checkpoint, scratch)
            if _is_done(scratch):  # its output comes next, and nothing goes on from here
                return
            step, there = marker["progress"]["step"], self._snapshot()
            if there is None or there["step"] < step:
                known = {f"{CHECKPOINTS}/{checkpoint.name}/{name}": file for name, file in marker["files"].items()}
                names = {path.relative_to(scratch).as_posix(): path for path in _files(scratch)}
                files = {name: known.get(name) or self._describe(path) for name, path in names.items()}
                manifest = {"step": step, "identity": self.identity, "files": files}
                self.remote.push(self.place, scratch, manifest, give_up=lambda: self._poller.abandoned)

    def _snapshot(self) -> dict[str, Any] | None:
        """Return the manifest of the uploaded snapshot, if it belongs to this training."""
        manifest = self.remote.manifest(self.place)
        ours = manifest is not None and manifest.get("identity") == self.identity and isinstance(manifest.get("step"), int)
        return manifest if ours else None

    def _describe(self, path: Path) -> dict[str, Any]:
        """Return size and digest of a file; an exported model's files are read once."""
        stat = path.stat()
        sign = (path.name, stat.st_ino, stat.st_mtime_ns)
        if sign not in self._known:
            self._known[sign] = file_digest(path)
        return {"bytes": stat.st_size, "sha256": self._known[sign]}

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the training's, whose lock makes it ours."""
        scratch = self.folder.with_name(f"{self.folder.name}.mirror")
        shutil.rmtree(scratch, ignore_errors=True)  # of a launcher that was killed
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def of_store(folder: Path, identity: Callable[[], str], **options: Any) -> Mirror | None:
    """Return the mirror of a training folder in a store's `.work`; None elsewhere and without object storage."""
    root = store_of(folder)
    if root is None or folder.parent != root / ".work":
        return None
    store = Store(root)
    return Mirror(store.remote, store.at_remote(folder), folder, identity(), **options) if store.remote else None


def _is_done(folder: Path) -> bool:
    return RunFolder(folder).status().get("state") == "done"


def _link_snapshot(folder: Path, checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """What goes on from `checkpoint` needs, held against pruning by hard links; returns the checkpoint's marker.

    Raises FileNotFoundError where something is pruned before it is linked.
    """
    marker: dict[str, Any] = json.loads((checkpoint / MARKER).read_text())
    copied = scratch / CHECKPOINTS / checkpoint.name
    copied.mkdir(parents=True)
    for name in (*marker["files"], MARKER):
        link_or_copy(checkpoint / name, copied / name)
    kept = [path for export in exported(folder) for path in _files(export)]
    for path in kept:
        target = scratch / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)
    for path in kept:
        path.stat()  # an export that is being removed is not linked in part
    for path in folder.glob("*.jsonl"):  # growing: whole lines
        data = path.read_bytes()
        (scratch / path.name).write_bytes(data[: data.rfind(b"\n") + 1])
    for path in folder.glob("*.json"):
        if path.name != MANIFEST:  # the store writes one wherever the training goes on
            shutil.copyfile(path, scratch / path.name)
    return marker


def _move_in(scratch: Path, folder: Path) -> None:
    """The small files, the kept models, and then the checkpoint."""
    for path in scratch.iterdir():
        if path.is_file():
            path.replace(folder / path.name)
    for kind in (EXPORTS, CHECKPOINTS):
        (folder / kind).mkdir(exist_ok=True)
        for path in (scratch / kind).glob("step-*"):
            fsync(path)
            shutil.rmtree(folder / kind / path.name, ignore_errors=True)
            path.rename(folder / kind / path.name)
        fsync(folder / kind)
    fsync(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
