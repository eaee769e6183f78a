"""The convert stage: conversations in any accepted form to messages.parquet, streamed in chunks.

Chunks are read and converted by threads and written in order, so memory holds a few chunks however long the source is.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.common.files import fsync
from talaria.common.output_folder import beside
from talaria.config.data_settings import Convert, Source
from talaria.config.schema import Config
from talaria.data import mixture
from talaria.data.conversation.drop_reasons import REASONS
from talaria.data.convert_rows import OnRows, copy_rows, write_messages
from talaria.data.messages_parquet import MESSAGES, made_by_convert
from talaria.data.source_files import SourceFile, SourceFiles, find_files, search
from talaria.data.source_sample import sample_files

Facts = dict[str, Any]


def fingerprint(config: Config) -> Any:
    """What outside the store decides the output: the source of the plugged-in function."""
    from talaria.data.user_function import source_digest

    if config.sources:
        functions = {name: source.convert.function for name, source in config.sources.items()}
        return {name: source_digest(function) for name, function in functions.items() if function}
    return source_digest(config.convert.function) if config.convert.function else None


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """Run the stage: the data files of `download` to messages.parquet, after a first look at each of several files.

    Raises DataError where a row cannot be used: a bad last file does not cost the time of those before it.
    """
    data, output = inputs["download"] / "data", out_dir / MESSAGES
    if config.sources:
        return convert_sources(data, output, config.sources)
    look_at([(find_files(data, all_splits=True), config.convert)], out_dir)
    return convert(data, output, config.convert, all_splits=True)  # download has chosen


def look_at(sources: Sequence[tuple[Sequence[SourceFile], Convert]], out_dir: Path) -> None:
    """Convert the beginning of every file, where there are several. Raises DataError where a row would stop the run."""
    if sum(len(files) for files, _ in sources) < 2:
        return
    for files, settings in sources:
        if settings.on_bad_row == "error" and settings.function is None and settings.rows is None:
            look = out_dir / "look"
            look.mkdir()
            write_messages(sample_files(files, look), look / MESSAGES, Convert(fields=settings.fields, roles=settings.roles))
            shutil.rmtree(look)


def convert(source: Path, output: Path, config: Convert, on_rows: OnRows | None = None, *, all_splits: bool = False) -> Facts:
    """Convert a file or a folder to one parquet, which appears at `output` whole or not at all. Returns the counts.

    Of a folder with a train split beside others, only that is read, unless `all_splits`; what is left out is named.

    Raises DataError, one sentence with file and row, where the source cannot be used; UserError where something is at
    `output` that convert did not make.
    """
    found = search(source, all_splits=all_splits)
    refuse_overwriting(output, found.files)
    with beside(output) as work:
        facts = convert_files(found, work / MESSAGES, config, on_rows)
        put(work / MESSAGES, output)
    return facts | {"bytes": output.stat().st_size}


def convert_sources(folder: Path, output: Path, sources: Mapping[str, Source], on_rows: OnRows | None = None) -> Facts:
    """Convert the sources that download put below `folder` to one parquet at `output`, a mixture (mixture.py).

    Raises DataError, one sentence with source, file and row, where a source cannot be used; UserError where something is at
    `output` that convert did not make.
    """
    found = {name: search(place, all_splits=True) for name, place in mixture.folders_of(folder, sources).items()}
    refuse_overwriting(output, [file for one in found.values() for file in one.files])
    with beside(output) as work:
        look_at([(found[name].files, source.convert) for name, source in sources.items()], work)
        converted: dict[str, tuple[Path, Facts]] = {}
        done = 0
        for name, source in sources.items():
            place = work / name / MESSAGES
            place.parent.mkdir()
            shown = partial(_further, on_rows, done) if on_rows else None
            converted[name] = (place, convert_files(found[name], place, source.convert, shown))
            done += converted[name][1]["rows_in"]
        facts = mixture.mix(converted, sources, work / MESSAGES)
        put(work / MESSAGES, output)
    return facts | {"bytes": output.stat().st_size}


def _further(on_rows: OnRows, done: int, rows: int, total: None) -> None:
    on_rows(done + rows, total)


def convert_files(found: SourceFiles, target: Path, config: Convert, on_rows: OnRows | None = None) -> Facts:
    """Convert one source's files to `target`."""
    made = convert_with(config, found.files, target) if config.function else write_messages(found.files, target, config, on_rows)
    return made | ({"left_out": found.left_out} if found.left_out else {})


def described(facts: Facts, data: Path, target: Path) -> Facts:
    """The facts of a parquet that was joined from parts, as `convert` gives them."""
    left_out = search(data, all_splits=True).left_out
    return facts | ({"left_out": left_out} if left_out else {}) | {"bytes": target.stat().st_size}


def put(target: Path, output: Path) -> None:
    """Move a whole parquet to its place."""
    fsync(target)
    target.replace(output.resolve())


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
