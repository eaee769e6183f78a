"""A user's own step before the roles are mapped: `convert.function: "module:name"`, LazyFrame -> LazyFrame.

The counterpart of the reference script's pluggable data function. It sees every row of the source at once, lazily, and returns
rows with a column `conversations` or `messages`. Since it runs whatever it likes, a deployment has to allow it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.errors import ConfigError, DataError
from talaria.common.files import file_digest
from talaria.data.source_files import SourceFile

if TYPE_CHECKING:
    import polars as pl

ALLOW = "TALARIA_ALLOW_CUSTOM_CODE"


def source_digest(dotted: str) -> str:
    """sha256 of the module that holds the function: helpers beside it count too."""
    return file_digest(Path(inspect.getfile(load(dotted))))


def load(dotted: str) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    """Raises ConfigError where the deployment does not allow it, or there is no such function."""
    if os.environ.get(ALLOW) != "1":
        raise ConfigError(f"convert.function: {dotted!r} is code of your own; set {ALLOW}=1 where it runs to allow it.")
    module, colon, name = dotted.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"convert.function: should look like 'module:name', got {dotted!r}.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"convert.function: cannot import {dotted!r} ({error}); its folder must be on PYTHONPATH.") from None
    if not inspect.isfunction(found):
        raise ConfigError(f"convert.function: {dotted!r} is no function.")
    return found


def apply(dotted: str, rows: Path, target: Path) -> SourceFile:
    """Run the function over the parquet `rows` and write what it returns to `target`.

    Raises DataError where what it returns is no frame, or where polars cannot compute it.
    """
    import polars as pl

    function = load(dotted)
    try:
        made = function(pl.scan_parquet(rows))
        if not isinstance(made, pl.LazyFrame):
            raise DataError(f"convert.function: {dotted!r} returned {type(made).__name__}, it should return a polars LazyFrame.")
        made.sink_parquet(target)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"convert.function: {dotted!r} failed: {str(error).splitlines()[0]}.") from error
    return SourceFile(target, f"what {dotted} returned", "parquet")
