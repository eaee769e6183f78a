"""Chunks encoded by processes, where a chat template renders them: that is Python, of which a process runs one line at a time.

Process i of n has the chunks i, i + n, i + 2n and so on; what it makes of one waits in its pipe until it is read, in order. It
ends when it has done its chunks, or nobody reads any more.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talaria.common.torch_free import hide_torch
from talaria.config.data_settings import Tokenize
from talaria.tokenization.parquet_chunks import RowRange, read
from talaria.tokenization.row_filter import Kept, Selector, Variables

AT_LEAST = 8
"""Chunks for which processes are begun; each takes some seconds to begin."""


class Share(NamedTuple):
    """What one process is told."""

    parquet: Path
    tokenizer: Path
    config: Tokenize
    rows: int
    held_out_rows: int | None
    chunks: Sequence[RowRange]
    variables: Variables | None = None


def in_processes(share: Share, count: int) -> Iterator[Kept]:
    """Yield what becomes of the share's chunks, in order. Raises what a process raises."""
    command = [sys.executable, "-P", "-c", "from talaria.tokenization.chunk_processes import main; main()"]
    begun = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for number, process in enumerate(begun):
            assert process.stdin
            pickle.dump(share._replace(chunks=share.chunks[number::count]), process.stdin)
            process.stdin.close()
        for number, chunk in enumerate(share.chunks):
            yield _next(begun[number % count], chunk)
    finally:
        for process in begun:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _next(process: subprocess.Popen[bytes], chunk: RowRange) -> Kept:
    assert process.stdout
    try:
        found = pickle.load(process.stdout)  # noqa: S301  # our own process wrote it
    except EOFError:
        code = process.wait()
        raise RuntimeError(f"the process that encoded rows {chunk.start} to {chunk.stop} ended with code {code}") from None
    if isinstance(found, BaseException):
        raise found
    assert isinstance(found, Kept)
    return found


def main() -> None:
    """Encode the chunks that stdin names, and write what becomes of them to stdout."""
    hide_torch()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    share = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that began this one
    for found in _made(share):
        pickle.dump(found, out, protocol=pickle.HIGHEST_PROTOCOL)
        out.flush()


def _made(share: Share) -> Iterator[Any]:
    from talaria.data.messages_parquet import open_parquet

    try:
        selector = Selector(share.parquet, share.tokenizer, share.config, share.rows, share.held_out_rows, share.variables)
        file = open_parquet(share.parquet)
        for chunk in share.chunks:
            yield from map(selector, read(file, [chunk]))
    except Exception as error:  # raised again where it is read
        yield error
