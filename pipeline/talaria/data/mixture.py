"""Several sources in one messages.parquet: each converted by its own settings, then weighted and held out row by row.

What is chosen depends on the content of the rows and the settings alone: not on processes, threads or the order of files. A
training row whose texts are those of a held-out row, in whatever source, is left out.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talaria.common.arrow import to_arrow
from talaria.common.errors import DataError
from talaria.config.data_settings import Source
from talaria.data.conversation.by_row import KNOWN
from talaria.data.conversation.columnar import column_of, list_offsets
from talaria.data.conversation.drop_reasons import IN_HELD_OUT, NOT_CHOSEN
from talaria.data.messages_parquet import codecs, open_parquet
from talaria.data.mixture_layout import KEY, MixtureLayout
from talaria.data.readers import column_types

BATCH = 8192
"""Rows of a source that are read and written at a time."""
SAID = ("content", "reasoning_content", "tool_calls")
"""Fields of a message whose texts say whether two rows are the same conversation."""
Facts = dict[str, Any]
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """What becomes of the rows of one converted source."""

    held_out: npt.NDArray[np.bool_]
    """bool[n]"""
    copies: Counts
    """int64[n]: how often each row stands in the mixture to be trained."""
    in_held_out: int
    """Rows left out since a held-out row says the same."""

    @property
    def facts(self) -> Facts:
        chosen, held_out = int(np.count_nonzero(self.copies)), int(np.count_nonzero(self.held_out))
        left_out = len(self.copies) - chosen - held_out - self.in_held_out
        dropped = {IN_HELD_OUT: self.in_held_out, NOT_CHOSEN: left_out}
        return {"chosen": chosen, "train": int(self.copies.sum()), "held_out": held_out, "dropped": dropped}


def mix(converted: Mapping[str, tuple[Path, Facts]], sources: Mapping[str, Source], target: Path) -> Facts:
    """Write the mixture of converted sources, in their order, to `target`. `converted`: name -> (parquet, convert's facts).

    Returns the counts: rows_in + repeated = rows + dropped, in all and, under `sources`, of each source.
    Raises DataError where no row is left to train on.
    """
    hashes = {name: text_hashes(path) for name, (path, _) in converted.items()}
    held_out = {name: held_out_of(found, sources[name].held_out) for name, found in hashes.items()}
    known = np.unique(np.concatenate([hashes[name][held_out[name]] for name in sources]))
    choices = {name: choose(hashes[name], held_out[name], known, sources[name]) for name in sources}
    if not any(choice.copies.any() for choice in choices.values()):
        raise DataError("no row of any source is left to train on: all are held out, or left out by max_rows and repeat.")
    write({name: path for name, (path, _) in converted.items()}, choices, target)
    return totals({name: of_source(facts, choices[name].facts) for name, (_, facts) in converted.items()}, target)


def text_hashes(parquet: Path) -> Hashes:
    """uint64[n]: a hash of what is said in each row, in order; the same as tokenize.validation_fraction takes for plain texts."""
    import xxhash

    file = open_parquet(parquet)
    found = np.empty(file.metadata.num_rows, np.uint64)
    row = 0
    for batch in file.iter_batches(BATCH, columns=["messages"]):
        messages = batch.column(0)
        turns = messages.flatten()
        texts = [_text(pc.struct_field(turns, name)) for name in SAID if turns.type.get_field_index(name) >= 0]
        flat = pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string())) if len(texts) > 1 else texts[0]
        said = pc.binary_join(pa.ListArray.from_arrays(list_offsets(messages), flat), pa.scalar("", pa.large_string()))
        _, ends, data = said.buffers()
        text = memoryview(data) if data is not None else memoryview(b"")
        edges = np.frombuffer(ends, np.int64)[said.offset : said.offset + len(said) + 1].tolist()
        for start, stop in itertools.pairwise(edges):
            found[row] = xxhash.xxh3_64_intdigest(text[start:stop])
            row += 1
    return found


def _text(values: pa.Array) -> pa.Array:
    return pc.fill_null(values, "").cast(pa.large_string())


def held_out_of(hashes: Hashes, fraction: float) -> npt.NDArray[np.bool_]:
    """bool[n]: the rows whose hash is in the lowest `fraction` of the 64-bit range; a larger fraction only adds rows."""
    if fraction == 1:
        return np.ones(len(hashes), np.bool_)
    return hashes < np.uint64(int(fraction * 2**64))


def choose(hashes: Hashes, held_out: npt.NDArray[np.bool_], held_out_hashes: Hashes, source: Source) -> Choice:
    """Decide on the rows of one source. Larger max_rows or repeat only add rows; equal rows are chosen in their order."""
    free = ~held_out & ~np.isin(hashes, held_out_hashes)
    rows = np.flatnonzero(free)
    ranked = rows[np.argsort(shuffled(hashes[rows], source.seed), kind="stable")][: source.max_rows]
    whole = int(source.repeat)
    copies = np.zeros(len(hashes), np.int64)
    copies[ranked] = whole
    copies[ranked[: round((source.repeat - whole) * len(ranked))]] += 1
    return Choice(held_out, copies, int(np.count_nonzero(~free & ~held_out)))


def shuffled(hashes: Hashes, seed: int) -> Hashes:
    """Another hash of each for each seed (splitmix64), so that what is chosen does not hang together with what is held out."""
    with np.errstate(over="ignore"):
        z = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def write(parquets: Mapping[str, Path], choices: Mapping[str, Choice], target: Path) -> None:
    """Write the held-out rows of all sources, then the rows to train on; copies of a row stand side by side."""
    schema = joint_schema([open_parquet(path).schema_arrow for path in parquets.values()])
    ranges: list[tuple[str, int, int]] = []
    row = held_out = 0
    with pq.ParquetWriter(target, schema, compression=codecs(schema)) as writer:
        for trained in (False, True):
            for name, path in parquets.items():
                choice, first = choices[name], row
                copies = choice.copies if trained else choice.held_out.astype(np.int64)
                for table in taken(path, copies):
                    writer.write_table(placed(table, schema, name, held_out=not trained))
                    row += len(table)
                if row > first:
                    ranges.append((name, first, row))
            held_out = row if not trained else held_out
        writer.add_key_value_metadata({KEY: json.dumps(MixtureLayout(held_out, tuple(ranges)).as_json())})


def taken(parquet: Path, copies: Counts) -> Iterator[pa.Table]:
    """The rows of a converted source as often as `copies` says, with their numbers as `source_row`."""
    if not copies.any():
        return
    file = open_parquet(parquet)
    columns = [name for name in ("tools", "messages") if name in file.schema_arrow.names]
    row = 0
    for batch in file.iter_batches(BATCH, columns=columns):
        places = np.repeat(np.arange(len(batch)), copies[row : row + len(batch)])
        if len(places):
            table = pa.Table.from_batches([batch]).take(to_arrow(places))
            yield table.append_column("source_row", to_arrow(row + places))
        row += len(batch)


def joint_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The mixture's columns: source, source_row, held_out, tools where a source has some, and messages with all their fields."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema.field("messages").type.value_type:
            known = types.get(field.name, field.type)
            other = KNOWN.get(field.name) or column_types.join(known, field.type)
            types[field.name] = known if known == field.type else other
    fields = [name for name in KNOWN if name in types] + [name for name in types if name not in KNOWN]
    message = column_types.written({name: types[name] for name in fields})
    columns = [("source", pa.string()), ("source_row", pa.int64()), ("held_out", pa.bool_())]
    columns += [("tools", pa.string())] if any("tools" in schema.names for schema in schemas) else []
    return pa.schema([*columns, ("messages", pa.list_(pa.struct(list(message))))])


def placed(table: pa.Table, schema: pa.Schema, source: str, *, held_out: bool) -> pa.Table:
    """The table in the mixture's columns."""
    own = {"source": pa.scalar(source), "held_out": pa.scalar(held_out)}
    arrays = []
    for column in schema:
        if column.name in own:
            arrays.append(pa.repeat(own[column.name], len(table)))
        elif column.name == "messages":
            arrays.append(widened(column_of(table, "messages"), column.type.value_type))
        elif column.name in table.column_names:
            arrays.append(column_of(table, column.name).cast(column.type))
        else:
            arrays.append(pa.nulls(len(table), column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def widened(messages: pa.ListArray, message: pa.StructType) -> pa.ListArray:
    """The messages with all fields of `message`; one that a source does not have is null."""
    turns = messages.flatten()
    arrays = [
        _as(pc.struct_field(turns, field.name), field.type)
        if turns.type.get_field_index(field.name) >= 0
        else pa.nulls(len(turns), field.type)
        for field in message
    ]
    return pa.ListArray.from_arrays(list_offsets(messages), pa.StructArray.from_arrays(arrays, fields=list(message)))


def _as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in another source's type of this field; as JSON text where only that holds both."""
    if values.type == kind:
        return values
    if pa.types.is_string(kind):
        return column_types.to_column(values.to_pylist(), column_types.JSON)
    return column_types.to_column(values.to_pylist(), kind) if pa.types.is_nested(kind) else values.cast(kind)


def of_source(converted: Facts, chosen: Facts) -> Facts:
    """One source's counts: rows_in = chosen + held_out + dropped, and train = chosen with its copies."""
    dropped = {reason: count for reason, count in (converted["dropped"] | chosen["dropped"]).items() if count}
    named: Facts = {
        name: converted[name] for name in ("shapes", "mapped", "not_carried", "left_out", "examples") if name in converted
    }
    # what a function of the user's made of its rows is what counts from there on
    made = {"rows_of_function": converted["rows_of_function"]} if "rows_of_function" in converted else {}
    counts = {name: chosen[name] for name in ("chosen", "train", "held_out")}
    return {"rows_in": converted["rows_in"], **made, **counts, "dropped": dropped, "repaired": converted["repaired"], **named}


def totals(sources: Mapping[str, Facts], target: Path) -> Facts:
    dropped: Counter[str] = Counter()
    for facts in sources.values():
        dropped.update(facts["dropped"])
    every = list(sources.values())
    return {
        "rows_in": sum(facts["rows_in"] for facts in every),
        "rows": sum(facts["train"] + facts["held_out"] for facts in every),
        "repeated": sum(facts["train"] - facts["chosen"] for facts in every),
        "dropped": dict(dropped),
        "repaired": sum(facts["repaired"] for facts in every),
        "sources": dict(sources),
        "columns": pq.read_schema(target).names,
    }


def folders_of(folder: Path, sources: Mapping[str, Source]) -> dict[str, Path]:
    """Where download put each source: `folder` is its output, or data/ in it. Raises DataError where one is not there."""
    root = folder / "data" if (folder / "data").is_dir() else folder
    for name in sources:
        if not (root / name).is_dir():
            raise DataError(f"{root}: has no folder {name}, for sources.{name}; make it with `talaria download`.")
    return {name: root / name for name in sources}
