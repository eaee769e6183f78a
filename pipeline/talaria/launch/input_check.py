"""Whether a training's inputs are what their manifests say, and whose run they make: their digests, read anew at each launch.

Hashing 8 GB takes 8 s, and the ranks take as long to import PyTorch: they start meanwhile, and wait for the digests then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import read_object
from talaria.common.locks import Busy
from talaria.config.schema import Config
from talaria.runs.folder import CHECKPOINTS, CONFIG, EXPORTS, MODEL, STATUS, RunFolder
from talaria.runs.identity import DIGESTS, being_read, noted_identity, run_identity

_FIRST = 0.3
"""Seconds that a launch waits for the digests before it starts ranks: with small inputs a refusal costs nothing."""


@dataclass(frozen=True)
class InputCheck:
    """The identity of the run of `inputs` (configuration, tokens, base model) in the folder `output`."""

    inputs: tuple[Config, Path, Path]
    output: Path
    reading: Future[str]

    def identity(self) -> str:
        """Wait for it. Raises DataError where an input is not what it should be."""
        return self.reading.result()

    def before_ranks(self) -> str | None:
        """Return it, or None where ranks may start before it is known: the folder is new, or of this run by all that is noted."""
        status = RunFolder(self.output).status()
        ours = status.get("identity") in (None, noted_identity(*self.inputs, self.output))
        wait([self.reading], timeout=_FIRST if ours and status.get("state") != "done" else None)
        return self.identity() if self.reading.done() else None

    def refused(self) -> bool:
        """Whether an input is known not to be what it should be."""
        return self.reading.done() and self.reading.exception() is not None

    def require(self) -> None:
        """Raise what `identity` raises, if it is known by now, and note it in the folder, where ranks were started."""
        try:
            if self.reading.done():
                self.identity()
        except UserError as error:
            folder = RunFolder(self.output)
            folder.set_status("failed", reason=str(error), kind="user")
            folder.event("failed", str(error), folder.status().get("step", 0), reason_kind="user")
            raise


@contextlib.contextmanager
def checked_inputs(config: Config, tokens: Path, base: Path, output: Path) -> Iterator[InputCheck]:
    """Begin to read the inputs, beside whatever follows. Raises UserError for a folder with files of others."""
    _refuse_foreign(output)
    inputs = config, tokens, base
    with contextlib.ExitStack() as held, ThreadPoolExecutor(1, thread_name_prefix="inputs") as pool:
        with contextlib.suppress(Busy):  # another machine's launch reads the same files of the same disk
            held.enter_context(being_read(output))
        reading = pool.submit(run_identity, *inputs, output, reread=True)
        reading.add_done_callback(lambda _: held.close())
        yield InputCheck(inputs, output, reading)


def _refuse_foreign(output: Path) -> None:
    """Raise UserError where no training is, but a file that it would write over: in the base model's own folder, say."""
    ours = "train" in read_object(output / CONFIG)  # a launch that was killed may have written no more
    if ours or (output / STATUS).exists() or (output / DIGESTS).exists():
        return
    if there := next((name for name in (CONFIG, MODEL, EXPORTS, CHECKPOINTS) if (output / name).exists()), None):
        raise UserError(
            f"{output}: {there} there is not of a training by Talaria, and would be replaced; choose another --output."
        )
