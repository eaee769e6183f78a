"""`talaria`: the pipeline on the command line."""

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Entry point; app.main with the commands."""
    gc.set_threshold(100_000)  # imports make objects by the hundred thousand, none of them garbage: saves 0.1 s
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look through all installed packages for some
    words = sys.argv[1:]
    if words[:1] == ["tokenize"] and "--tokenizer" in words[:-1] and "--set" not in words:
        # a large vocabulary takes a second to read, on another core than the commands are imported and parsed on
        from talaria.tokenization import fastokens_backend as fast

        fast.begin(Path(words[words.index("--tokenizer") + 1], "tokenizer.json"))
    from talaria.cli import app, model_commands, run_commands, stage_commands  # noqa: F401

    app.main()
