"""The convert stage: conversations in any accepted form to messages.parquet, streamed in chunks.

Chunks are read and converted by threads and written in order, so memory holds a few chunks however long the source is.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.common.files import fsync
from talaria.common.output_folder import beside
from talaria.config.schema import Config, Convert
from talaria.data.conversation.drop_reasons import REASONS
from talaria.data.convert_rows import OnRows, copy_rows, write_messages
from talaria.data.messages_parquet import MESSAGES, made_by_convert
from talaria.data.source_files import SourceFile, find_files, search
from talaria.data.source_sample import sample_files

Facts = dict[str, Any]


def fingerprint(config: Config) -> Any:
    """What outside the store decides the output: the source of the plugged-in function."""
    if config.convert.function is None:
        return None
    from talaria.data.user_function import source_digest

    return source_digest(config.convert.function)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """Run the stage: the data files of `download` to messages.parquet, after a first look at each of several files.

    Raises DataError where a row cannot be used: a bad last file does not cost the time of those before it.
    """
    files = find_files(inputs["download"] / "data", all_splits=True)
    settings = config.convert
    stops = settings.on_bad_row == "error" and settings.function is None and settings.rows is None
    if len(files) > 1 and stops:
        look = out_dir / "look"
        look.mkdir()
        write_messages(sample_files(files, look), look / MESSAGES, Convert(fields=settings.fields, roles=settings.roles))
        shutil.rmtree(look)
    return convert(inputs["download"] / "data", out_dir / MESSAGES, config.convert, all_splits=True)  # download has chosen


def convert(source: Path, output: Path, config: Convert, on_rows: OnRows | None = None, *, all_splits: bool = False) -> Facts:
    """Convert a file or a folder to one parquet, which appears at `output` whole or not at all. Returns the counts.

    Of a folder with a train split beside others, only that is read, unless `all_splits`; what is left out is named.

    Raises DataError, one sentence with file and row, where the source cannot be used; UserError where something is at
    `output` that convert did not make.
    """
    found = search(source, all_splits=all_splits)
    refuse_overwriting(output, found.files)
    with beside(output) as work:
        target = work / MESSAGES
        if config.function:
            facts = convert_with(config, found.files, target)
        else:
            facts = write_messages(found.files, target, config, on_rows)
        fsync(target)
        target.replace(output.resolve())
    left_out = {"left_out": found.left_out} if found.left_out else {}
    return facts | left_out | {"bytes": output.stat().st_size}


def refuse_overwriting(output: Path, files: Sequence[SourceFile]) -> None:
    """Raise UserError where the output would take the place of its input, or of a file that convert did not make."""
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file, for example {output / MESSAGES}.")
    if not output.exists():
        return
    if any(output.samefile(file.path) for file in files):
        raise UserError(f"{output}: is the input itself; choose another --output.")
    if not made_by_convert(output):
        raise UserError(f"{output}: there is something there that `talaria convert` did not make; choose another --output.")


def convert_with(config: Convert, files: Sequence[SourceFile], target: Path) -> Facts:
    """Hand the rows to the user's function as one frame, and convert what it returns."""
    from talaria.common.user_code import load_function
    from talaria.data import user_function as custom

    assert config.function
    load_function(custom.SETTING, config.function)
    rows, made = target.with_name("rows.parquet"), target.with_name("made.parquet")
    read = copy_rows(files, rows, config)
    returned = custom.apply(config.function, rows, made)
    facts = write_messages([returned], target, config.model_copy(update={"rows": None}))
    dropped: Counter[str] = Counter(read["dropped"]) + Counter(facts["dropped"])
    counts = {reason: dropped[reason] for reason in REASONS}
    own = {"rows_in": read["rows_in"], "rows_of_function": facts["rows_in"], "repaired": read["repaired"]}
    return facts | own | {"dropped": counts}
