"""A user's own step before the roles are mapped: `convert.function: "module:name"`, LazyFrame -> LazyFrame.

The counterpart of the reference script's pluggable data function. It sees every row of the source at once, lazily, and returns
rows with a column `conversations` or `messages`. Since it runs whatever it likes, a deployment has to allow it.
"""

from __future__ import annotations

from pathlib import Path

from talaria.common.errors import DataError
from talaria.common.user_code import load_function, module_digest
from talaria.data.source_files import SourceFile

SETTING = "convert.function"


def source_digest(dotted: str) -> str:
    """sha256 of the module that holds the function: helpers beside it count too."""
    return module_digest(SETTING, dotted)


def apply(dotted: str, rows: Path, target: Path) -> SourceFile:
    """Run the function over the parquet `rows` and write what it returns to `target`.

    Raises DataError where what it returns is no frame, or where polars cannot compute it.
    """
    import polars as pl

    function = load_function(SETTING, dotted)
    try:
        made = function(pl.scan_parquet(rows))
        if not isinstance(made, pl.LazyFrame):
            raise DataError(f"convert.function: {dotted!r} returned {type(made).__name__}, it should return a polars LazyFrame.")
        made.sink_parquet(target)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"convert.function: {dotted!r} failed: {str(error).splitlines()[0]}.") from error
    return SourceFile(target, f"what {dotted} returned", "parquet")
