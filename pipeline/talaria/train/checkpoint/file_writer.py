"""The process that writes one rank's part of a checkpoint, so that neither Python's lock nor the disk holds up the training.

    python -I -S file_writer.py SIZE FD [FD]

Each FD is a block of the rank's host memory. A request is a line of JSON on stdin, {"folder", "rank", "block", "files": [[tensor,
...], ...]}, "block" being the FD's number from 0, a tensor {"name", "dtype", "shape", "place", "start", "bytes"}; the answer is a
line on stdout: {"files": {name: {"bytes", "sha256"}}} or {"error", "full"}. It ends when stdin does, and by no signal to stop,
since its rank still saves then. Standard library only: it is up in some 50 ms and takes no memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 16 << 20
_FLUSHED = 1 << 28
"""Bytes after which what was written is flushed and let go of, in a thread: the page cache would otherwise grow by a whole
checkpoint, and the disk stand still while the next bytes are copied and hashed."""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    size, *fds = map(int, sys.argv[1:])
    with ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as held:
        blocks = [held.enter_context(mmap.mmap(fd, size, prot=mmap.PROT_READ)) for fd in fds]
        memories = [held.enter_context(memoryview(block)) for block in blocks]
        for line in sys.stdin:
            try:
                request = json.loads(line)
                answer = _serve(request, memories[request["block"]], threads)
            except OSError as error:
                answer = {"error": f"{type(error).__name__}: {error}", "full": error.errno in FULL}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _serve(request: dict[str, Any], memory: memoryview, threads: ThreadPoolExecutor) -> dict[str, Any]:
    written = {}
    for number, tensors in enumerate(request["files"]):
        path = Path(request["folder"]) / f"rank-{request['rank']:05d}-{number:03d}.safetensors"
        written[path.name] = _write(path, tensors, memory, threads)
    return {"files": written}


def _write(path: Path, tensors: list[dict[str, Any]], memory: memoryview, threads: ThreadPoolExecutor) -> dict[str, Any]:
    """One file in the safetensors format; one thread hashes each chunk while it is written, another flushes those before."""
    digest, total, flushed = hashlib.sha256(), 0, 0
    flushing: Future[None] | None = None
    with path.open("wb", buffering=0) as file:
        try:
            for chunk in (_header(tensors), *_chunks(tensors, memory)):
                hashed = threads.submit(digest.update, chunk)
                total += _write_all(file.fileno(), chunk)
                hashed.result()
                if total - flushed >= _FLUSHED:
                    flushed = total
                    if flushing:
                        flushing.result()
                    flushing = threads.submit(_flush, file.fileno())
        finally:
            wait([flushing] if flushing else [])  # before the file is closed
        if flushing:
            flushing.result()
        _flush(file.fileno())
    return {"bytes": total, "sha256": digest.hexdigest()}


def _header(tensors: list[dict[str, Any]]) -> bytes:
    """https://huggingface.co/docs/safetensors: a length, then JSON, padded to 8 bytes. `place` is a tensor's first element in the
    flattened whole; PyTorch's reader of distributed checkpoints knows the entry's name, but only whole rows."""
    at, entries = 0, {}
    for tensor in tensors:
        span = [at, at + tensor["bytes"]]
        entries[tensor["name"]] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": span}
        at = span[1]
    places = {tensor["name"]: tensor["place"] for tensor in tensors}
    text = json.dumps({"__metadata__": {"format": "pt", "places": json.dumps(places)}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensors: list[dict[str, Any]], memory: memoryview) -> Any:
    for tensor in tensors:
        end = tensor["start"] + tensor["bytes"]
        for at in range(tensor["start"], end, _CHUNK):
            yield memory[at : min(at + _CHUNK, end)]


def _write_all(fd: int, chunk: bytes | memoryview) -> int:
    done = 0
    while done < len(chunk):
        done += os.write(fd, chunk[done:])
    return done


def _flush(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
