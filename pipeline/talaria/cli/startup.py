"""What the command line does to start and to end sooner. Nothing here changes a result; each line says what it saves."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

from talaria.common.torch_free import hide_torch


def speed_up_start() -> None:
    """Set up the process before the commands are imported."""
    gc.set_threshold(100_000)  # imports make objects by the hundred thousand, none of them garbage: saves 0.1 s
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look through all installed packages for some
    if sys.argv[1:2] == ["tokenize"]:
        hide_torch()  # a chat template is rendered two seconds of processor time sooner
        if "--input" in sys.argv:
            from talaria.tokenization.comparison import reloaded

            reloaded.begin()  # another core imports transformers beside all imports here: saves 0.2 s


def leave(code: int) -> NoReturn:
    """End the process as it is, after its exit handlers have run.

    Freeing its objects one by one, or waiting for threads that nobody needs any more, takes its time.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):  # whoever read our output has gone
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
