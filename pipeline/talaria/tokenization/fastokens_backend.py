"""Reading a tokenizer with fastokens in the background: it takes a second over a large vocabulary, beside other work."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ERRORS = (ImportError, ValueError, RuntimeError, OSError)
"""What a tokenizer that fastokens cannot read, or a machine without it, ends in."""
_begun: dict[Path, Future[Any]] = {}


def begin(file: Path) -> None:
    """Start to read this tokenizer.json, for `take` to be quicker, unless that has begun. What goes wrong, `take` brings."""
    if file in _begun:
        return
    prepare()
    pool = ThreadPoolExecutor(1, thread_name_prefix="fastokens")
    _begun[file] = pool.submit(_read, file)
    pool.shutdown(wait=False)


def prepare() -> None:
    """Settings that libraries read from the environment on first use, where it does not have them.

    Threads are ours, one an encoder (stage.py). Arrow's own allocator returns freed memory within milliseconds, and the system
    clears each page that is then asked for anew; jemalloc, which its packages for Linux hold too, keeps it for a second.
    """
    for name in ("FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if sys.platform == "linux":
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")


def take(file: Path) -> Future[Any]:
    """fastokens' tokenizer of this tokenizer.json, or the error that reading it ended with."""
    begin(file)
    return _begun.pop(file)


def _read(file: Path) -> Any:
    from fastokens import _native

    tokenizer = _native.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_batch_flat(["\n"], False, True)  # the first call builds tables for a tenth of a second, threads waiting
    return tokenizer
