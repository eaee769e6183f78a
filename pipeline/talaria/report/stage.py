"""The stage `report`: statistics of the data as JSON (report.json) and as a page (report.html).

Reads the messages in chunks, the tokens' lengths and masks, and what convert and tokenize counted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talaria.common.files import MANIFEST
from talaria.common.output_folder import replacing
from talaria.common.threads import ordered
from talaria.config.schema import Config
from talaria.data.conversation.drop_reasons import OF_MIXTURES, REASONS
from talaria.data.conversation.row_filters import digests
from talaria.data.messages_parquet import MESSAGES, open_parquet
from talaria.report.oddities import ODDITIES, flatten
from talaria.report.page import failed_page, page
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.reasons import BAD_ROWS, DROPS

BATCH = 8192
EXAMPLES, LONGEST, SOURCES, PREVIEW = 3, 5, 30, 240
Facts = dict[str, Any]
Numbers = npt.NDArray[Any]


log = logging.getLogger(__name__)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """Run the stage. A report that cannot be made is told in its place and in the log: a model is registered without one."""
    try:
        return fill(inputs["convert"], inputs["tokenize"], out_dir, name=config.name, download=inputs["download"])
    except Exception as error:
        log.exception("the data report of %s could not be made", config.name)
        sentence = f"The report could not be made: {type(error).__name__}: {error}"
        for leftover in out_dir.iterdir():
            leftover.unlink()
        (out_dir / "report.json").write_text(json.dumps({"name": config.name, "failed": sentence}), encoding="utf-8")
        (out_dir / "report.html").write_text(failed_page(config.name, sentence), encoding="utf-8")
        return {"failed": sentence}


def report(data: Path, tokens: Path, output: Path) -> Facts:
    """Run the stage on explicit paths. `data` is messages.parquet or its folder."""
    with replacing(output, made_by="report") as work:
        facts = fill(data, tokens, work.path, name=data.stem)
        work.describe({"facts": facts})
    return facts


def fill(data: Path, tokens: Path, out_dir: Path, *, name: str, download: Path | None = None) -> Facts:
    """Write both files and return the main numbers."""
    measured = measure(data if data.is_file() else data / MESSAGES, tokens)
    converted = facts_of(data)
    measured["duplicates"] -= converted.get("repeated", 0)  # the copies that a mixture has of a row
    measured |= {"mixture": mixture(converted, tokens)} if "sources" in converted else {}
    measured |= {"name": name, "origin": facts_of(download), "dropped": drops(converted, facts_of(tokens))}
    (out_dir / "report.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False), encoding="utf-8")
    (out_dir / "report.html").write_text(page(measured), encoding="utf-8")
    return {key: measured[key] for key in ("rows", "conversations", "tokens", "supervised_tokens", "duplicates")}


def facts_of(folder: Path | None) -> Facts:
    """Return the facts of the stage that made the folder; empty if no stage made it."""
    manifest = (folder or Path()) / MANIFEST
    if folder is None or not manifest.is_file():
        return {}
    facts: Facts = json.loads(manifest.read_text(encoding="utf-8"))["facts"]
    return facts


def mixture(convert: Facts, tokens: Path) -> list[Facts]:
    """Return what became of the rows of each source, from convert's counts to the tokens of each split."""
    found = []
    parts = {split: part.by_source for split, part in open_tokens(tokens).items() if part is not None}
    for name, counts in convert["sources"].items():
        mine = {split: by_source[name] for split, by_source in parts.items() if name in by_source}
        numbers = {name: counts[name] for name in ("rows_in", "chosen", "train", "held_out", "dropped")}
        sizes = {
            "tokens": {split: int(part.lengths.sum()) for split, part in mine.items()},
            "supervised_tokens": {split: int(part.supervised.sum()) for split, part in mine.items()},
            "conversations": {split: len(part) for split, part in mine.items()},
        }
        found.append({"source": name, **numbers, **sizes})
    return found


def drops(convert: Facts, tokenize: Facts) -> list[Facts]:
    """Return the number of dropped rows by stage and reason."""
    reasons = REASONS | OF_MIXTURES | DROPS | BAD_ROWS
    return [
        {"stage": stage, "reason": reason, "meaning": reasons.get(reason, reason), "rows": rows}
        for stage, facts in (("convert", convert), ("tokenize", tokenize))
        for reason, rows in facts.get("dropped", {}).items()
    ]


@dataclass(frozen=True)
class Measured:
    """Measurements of a batch of rows: one number per row, and the rows that fail each check."""

    characters: Numbers
    turns: Numbers
    system: Numbers
    digests: bytes
    odd: dict[str, Numbers]


def measure_batch(messages: pa.Array) -> Measured:
    turns = flatten(messages)
    return Measured(
        characters=sums(pc.utf8_length(turns.content).to_numpy(zero_copy_only=False), turns.offsets),
        turns=sums(turns.is_role("user"), turns.offsets),
        system=sums(turns.is_role("system"), turns.offsets) > 0,
        digests=b"".join(digests(messages)),
        odd={name: oddity.find(turns) for name, oddity in ODDITIES.items()},
    )


def sums(values: Numbers, offsets: Numbers) -> Numbers:
    """Return the sum of each row's values."""
    total: Numbers = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]


def measure(parquet: Path, tokens_folder: Path) -> Facts:
    file = open_parquet(parquet)
    threads = min(8, len(os.sched_getaffinity(0)))
    batches = list(ordered(measure_batch, messages_of(file), threads))
    characters = np.concatenate([batch.characters for batch in batches])
    user_turns = np.concatenate([batch.turns for batch in batches])
    splits = {split: tokens for split, tokens in open_tokens(tokens_folder).items() if tokens is not None}
    lengths = np.concatenate([tokens.lengths for tokens in splits.values()])
    supervised = np.concatenate([tokens.supervised for tokens in splits.values()])
    kept = np.concatenate([tokens.rows for tokens in splits.values()])
    tokens_of_row = np.full(len(characters), -1, np.int64)
    tokens_of_row[kept] = lengths
    odd = {name: np.flatnonzero(np.concatenate([batch.odd[name] for batch in batches])) for name in ODDITIES}
    shown = sorted({int(row) for rows in odd.values() for row in rows[:EXAMPLES]} | {int(row) for row in longest(characters)})
    texts = previews(file, shown)

    def describe(row: int) -> Facts:
        known = int(tokens_of_row[row])
        return {"row": row, "characters": int(characters[row]), "tokens": known if known >= 0 else None, "text": texts[row]}

    return {
        "rows": len(characters),
        "conversations": {split: len(tokens) for split, tokens in splits.items()},
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(supervised.sum()),
        "duplicates": repeated(b"".join(batch.digests for batch in batches)),
        "with_system": int(sum(batch.system.sum() for batch in batches)),
        "multi_turn": int((user_turns > 1).sum()),
        "distributions": {
            "tokens": distribution(lengths),
            "characters": distribution(characters),
            "user_turns": distribution(user_turns),
            "supervised_share": distribution(100 * supervised / np.maximum(lengths, 1), whole=False),
        },
        "sources": sources(file, tokens_of_row),
        "longest": [describe(int(row)) for row in longest(characters)],
        "oddities": [
            {
                "name": name,
                "meaning": oddity.meaning,
                "rows": len(odd[name]),
                "examples": [describe(int(row)) for row in odd[name][:EXAMPLES]],
            }
            for name, oddity in ODDITIES.items()
        ],
    }


def messages_of(file: pq.ParquetFile) -> Iterator[pa.Array]:
    for batch in file.iter_batches(BATCH, columns=["messages"]):
        yield batch.column(0)


def longest(characters: Numbers) -> Numbers:
    return np.argsort(-characters, kind="stable")[:LONGEST]


def repeated(all_digests: bytes) -> int:
    """Return the rows whose messages equal an earlier row's."""
    values = np.frombuffer(all_digests, dtype=[("high", "u8"), ("low", "u8")])
    return len(values) - len(np.unique(values))


def distribution(values: Numbers, *, whole: bool = True, bins: int = 40) -> Facts:
    """Return mean, quantiles and a histogram, whose last bin takes everything above the 99th percentile."""
    if not len(values):
        return {"mean": None, "quantiles": {}, "bins": [], "open": False}
    points = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    quantiles = dict(zip(points, np.percentile(values, list(points.values()), method="lower").tolist(), strict=True))
    few = whole and quantiles["max"] - quantiles["min"] < bins
    low, high = quantiles["min"], quantiles["max" if few else "p99"]
    width = max((high - low) / bins, 1 if whole else 1e-9)
    width = float(np.ceil(width)) if whole else width
    edges = low + width * np.arange(int((high - low) / width) + 2)  # the last bin begins at or below `high`
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
    shown = [{"from": round(float(edge), 3), "rows": int(count)} for edge, count in zip(edges[:-1], counts, strict=True)]
    return {"mean": round(float(values.mean()), 2), "quantiles": quantiles, "width": width, "bins": shown, "open": not few}


def sources(file: pq.ParquetFile, tokens_of_row: Numbers) -> list[Facts]:
    """Return rows and tokens per value of the column `source`, largest first; those after the first 30 are summed."""
    if "source" not in file.schema_arrow.names:
        return []
    column = _as_text(file.read(columns=["source"]).column(0).combine_chunks()).dictionary_encode(null_encoding="encode")
    codes = column.indices.to_numpy(zero_copy_only=False)
    names = column.dictionary.to_pylist()
    rows = np.bincount(codes, minlength=len(names))
    tokens = np.bincount(codes, weights=np.maximum(tokens_of_row, 0), minlength=len(names))
    order = np.argsort(-rows, kind="stable")
    table = [{"source": names[code], "rows": int(rows[code]), "tokens": int(tokens[code])} for code in order]
    rest = table[SOURCES:]
    if rest:
        total = {key: sum(entry[key] for entry in rest) for key in ("rows", "tokens")}
        table = [*table[:SOURCES], {"source": f"{len(rest)} others", **total}]
    return table


def _as_text(values: pa.Array) -> pa.Array:
    """A column's values as text; lists and objects as JSON."""
    if pa.types.is_nested(values.type):
        return pa.array([None if value is None else json.dumps(value, default=str) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def previews(file: pq.ParquetFile, rows: list[int]) -> dict[int, str]:
    """Return the beginning of the given rows (ascending) as 'role: text' lines. Reads only the row groups that contain them."""
    texts: dict[int, str] = {}
    first = 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        here = [row for row in rows if first <= row < end]
        messages = file.read_row_group(group, columns=["messages"]).column(0) if here else []
        for row in here:
            turns = messages[row - first].as_py() or []
            texts[row] = "\n".join(
                f"{turn['role']}: {shorten(turn['content'] or turn.get('tool_calls') or '')}" for turn in turns[:4]
            )
        first = end
    return texts


def shorten(text: str) -> str:
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]}… ({len(text):,} characters)"
