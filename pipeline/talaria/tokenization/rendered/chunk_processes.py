"""Chunks encoded by processes, where a chat template renders them: that is Python, of which a process runs one line at a time.

One process reads the vocabularies and imports transformers, and then forks the workers, which share them: for each of its own it
would take three seconds of processor time. It has no other thread then. Worker i of n has the chunks i, i + n, i + 2n and so on;
what it makes of one waits in its pipe until it is read, in order. It ends when it has done its chunks, or nobody reads any more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

from talaria.common.imports import quick_imports
from talaria.common.threads import ordered
from talaria.common.torch_free import hide_torch
from talaria.config.data_settings import Tokenize
from talaria.data.messages_parquet import open_parquet
from talaria.tokenization import fastokens_backend as fast
from talaria.tokenization.parquet_chunks import RowRange, read
from talaria.tokenization.row_filter import Kept, Selector, Variables
from talaria.tokenization.tokenizer_folder import CHATML

AT_LEAST = 8
"""Chunks for which processes are begun; they take some seconds to begin."""


class Share(NamedTuple):
    """What the workers are told."""

    parquet: Path
    tokenizer: Path
    config: Tokenize
    rows: int
    held_out_rows: int | None
    chunks: Sequence[RowRange]
    variables: Variables | None = None


class Workers:
    """`count` processes that encode chunks. A context manager; what is under way is given up at its end."""

    def __init__(self, tokenizer: Path, backend: str, count: int) -> None:
        """Begin to read the tokenizer."""
        self.facts: dict[str, Any] = {}
        """How the rows are encoded, once the first chunk is."""
        pipes = [os.pipe() for _ in range(count)]
        self._pipes = [os.fdopen(read_end, "rb") for read_end, _ in pipes]
        ends = [write_end for _, write_end in pipes]
        command = [sys.executable, "-P", "-c", "from talaria.tokenization.rendered.chunk_processes import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=ends)
        for end in ends:
            os.close(end)
        self._tell((tokenizer / "tokenizer.json" if backend != "tokenizers" else None, ends))

    def encoded(self, share: Share) -> Iterator[Kept]:
        """Yield what becomes of the share's chunks, in order. Raises what a worker raises."""
        self._tell(share)
        self.facts = self._next(self._pipes[0], share.chunks[0])
        for number, chunk in enumerate(share.chunks):
            yield self._next(self._pipes[number % len(self._pipes)], chunk)

    def _tell(self, told: Any) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `_next` says that it has ended
            pickle.dump(told, self._process.stdin)
            self._process.stdin.flush()

    def _next(self, pipe: IO[bytes], chunk: RowRange) -> Any:
        try:
            found = pickle.load(pipe)  # noqa: S301  # our own process wrote it
        except EOFError:
            code = self._process.wait()
            raise RuntimeError(f"the process that encoded rows {chunk.start} to {chunk.stop} ended with code {code}") from None
        if isinstance(found, BaseException):
            raise found
        return found

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()
        for pipe in self._pipes:
            pipe.close()


def begin(
    stack: ExitStack,
    parquet: Path,
    tokenizer: Path,
    config: Tokenize,
    rows: int,
    held_out_rows: int | None,
    chunks: Sequence[RowRange],
) -> tuple[Selector, Workers | None]:
    """The rule for the rows, and processes that go by it where a template renders many: threads would wait for each other.

    They begin before this process reads anything, which then leaves fastokens' vocabulary to them.
    """
    count = threads(config) if len(chunks) >= AT_LEAST else 1
    if count > 1 and config.template != CHATML:
        workers = stack.enter_context(Workers(tokenizer, config.backend, count))
        return Selector(parquet, tokenizer, config.model_copy(update={"backend": "tokenizers"}), rows, held_out_rows), workers
    selector = Selector(parquet, tokenizer, config, rows, held_out_rows)
    by_template = count > 1 and selector.encoder.holds_the_lock
    return selector, stack.enter_context(Workers(tokenizer, config.backend, count)) if by_template else None


def threads(config: Tokenize) -> int:
    """As many as the machine lets this process run, or as the settings say."""
    return config.workers or len(os.sched_getaffinity(0))


def encoded(
    parquet: Path,
    tokenizer: Path,
    selector: Selector,
    config: Tokenize,
    chunks: Sequence[RowRange],
    workers: Workers | None,
) -> Generator[Kept, None, None]:
    """What becomes of each chunk, in order; by threads, or by these processes."""
    if workers is None:
        yield from ordered(selector, read(open_parquet(parquet), chunks), threads(config))
        return
    on_day = config.model_copy(update={"template_date": selector.encoder.day})
    yield from workers.encoded(
        Share(parquet, tokenizer, on_day, selector.rows, selector.held_out_rows, chunks, selector.encoder.variables)
    )


def main() -> None:
    """Read what stdin names, fork the workers, and wait for them. Ends with code 1 where one dies."""
    hide_torch()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of its own would not outlive the fork
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no result of the command
    file, ends = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that began this one
    if file is not None:
        fast.begin(file)
    with quick_imports():
        import transformers  # noqa: F401  # before the rest is known
    try:
        share = pickle.load(sys.stdin.buffer)  # noqa: S301
    except EOFError:  # nobody wants anything
        return
    try:
        selector = Selector(share.parquet, share.tokenizer, share.config, share.rows, share.held_out_rows, share.variables)
        first: Any = selector.encoder.facts  # both vocabularies are read
    except Exception as error:  # raised again where it is read
        first = error
    with os.fdopen(os.dup(ends[0]), "wb") as out:
        pickle.dump(first, out)
    if isinstance(first, Exception):
        return
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    gc.freeze()  # pages that hold objects stay shared
    gc.set_threshold(100_000)  # a chunk is a million objects, hardly one of them garbage: a fifth of a worker's time
    _watch([_fork(selector, share, number, ends) for number in range(len(ends))], ends)


def _fork(selector: Selector, share: Share, number: int, ends: Sequence[int]) -> int:
    """Begin worker `number`. Returns its process id."""
    if process := os.fork():
        return process
    code = 1
    try:
        for end in ends:
            if end != ends[number]:
                os.close(end)
        with os.fdopen(ends[number], "wb") as out:
            for found in _made(selector, share._replace(chunks=share.chunks[number :: len(ends)])):
                pickle.dump(found, out, protocol=pickle.HIGHEST_PROTOCOL)
                out.flush()
        code = 0
    except BrokenPipeError:  # nobody reads any more
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(workers: list[int], ends: Sequence[int]) -> None:
    """Wait for the workers; all end where one dies, or with this process."""

    def give_up(*_: object) -> None:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, give_up)
    for end in ends:
        os.close(end)
    while workers:
        process, status = os.wait()
        workers.remove(process)
        if status:
            give_up()


def _made(selector: Selector, share: Share) -> Iterator[Any]:
    try:
        file = open_parquet(share.parquet)
        for chunk in share.chunks:
            yield from map(selector, read(file, [chunk]))
    except Exception as error:  # raised again where it is read
        yield error
