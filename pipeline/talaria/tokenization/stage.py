"""The tokenise stage: a messages parquet to a tokens folder, in one process or as row ranges on many machines.

The parquet is cut into stretches of `tokenize.shard_rows` rows, one Arrow shard each, and those into chunks, one record batch
each. Chunks are encoded by threads and written in order, so the bytes depend neither on the number of threads nor on how the
shards are spread over parts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.files import link_or_copy
from talaria.config.data_settings import Tokenize
from talaria.config.schema import Config
from talaria.data.messages_parquet import open_parquet
from talaria.data.mixture_layout import MixtureLayout
from talaria.tokenization import reasons
from talaria.tokenization.arrow_writer import Shard, ShardWriter, shard_name, write_empty, write_index
from talaria.tokenization.comparison.audit import Audit
from talaria.tokenization.dataset import SOURCES, TRAIN
from talaria.tokenization.parquet_chunks import chunks_of
from talaria.tokenization.rendered.chunk_processes import begin, encoded
from talaria.tokenization.row_filter import Kept
from talaria.tokenization.tokenizer_folder import CHATML, OWN, find, save

MESSAGES = "messages.parquet"
PART = "part.json"
Facts = dict[str, Any]
OnRows = Callable[[int, int], None]
"""Called with the rows done and the rows to do."""


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """The stage: messages.parquet of `convert` with the tokenizer of `base`."""
    return fill(inputs["convert"] / MESSAGES, inputs["base"], out_dir, config.tokenize)


def tokenize(parquet: Path, tokenizer: str | Path, output: Path, config: Tokenize, on_rows: OnRows | None = None) -> Facts:
    """The stage on explicit paths: the whole folder appears at `output` when it is done, or nothing.

    Raises UserError or DataError, one sentence, where the input or the place cannot be used.
    """
    from talaria.common.output_folder import replacing

    open_parquet(parquet)
    folder = find(tokenizer)
    with replacing(output, made_by="tokenize") as work:
        facts = fill(parquet, folder, work.path, config, on_rows)
        work.describe({"settings": {"tokenize": config.key_fields()}, "facts": facts})
    return facts


def fill(parquet: Path, tokenizer: Path, out_dir: Path, config: Tokenize, on_rows: OnRows | None = None) -> Facts:
    """Tokenise in this process."""
    part = out_dir / ".part"
    tokenize_range(parquet, tokenizer, part, config, 0, 1, on_rows)
    facts = merge([part], tokenizer, out_dir, config)
    shutil.rmtree(part)
    return facts


def tokenize_range(
    parquet: Path,
    tokenizer: Path,
    part_dir: Path,
    config: Tokenize,
    part: int,
    parts: int,
    on_rows: OnRows | None = None,
) -> Facts:
    """Part `part` of `parts`: its share of the shards, and part.json with their facts, into `part_dir`.

    Raises DataError where a row cannot be encoded, naming it.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}")
    part_dir.mkdir(parents=True, exist_ok=True)
    rows = open_parquet(parquet).metadata.num_rows
    layout = layout_of(parquet, config)
    chunks = chunks_of(rows, config.shard_rows, part, parts)
    to_do = sum(chunk.stop - chunk.start for chunk in chunks)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        selector, workers = begin(stack, parquet, tokenizer, config, rows, layout.held_out if layout else None, chunks)
        encoder = selector.encoder
        audit = stack.enter_context(Audit(encoder.compare, encoder.reloaded.close))
        every = stack.enter_context(closing(encoded(parquet, tokenizer, selector, config, chunks, workers)))
        written = write_shards(noted(every, audit, counts, to_do, on_rows), selector.splits, part_dir)
        audit.finish()
    counts[reasons.COMPARED] = audit.compared
    facts = {
        "rows": to_do,
        "counts": dict(counts),
        "splits": selector.splits,
        "mixture": layout.as_json() if layout else None,
        "encoding": workers.facts if workers else encoder.facts,
        "chat_template": encoder.source,
        "shards": [shard.as_json() for shard in written],
    }
    (part_dir / PART).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def noted(every: Iterable[Kept], audit: Audit, counts: Counter[str], to_do: int, on_rows: OnRows | None) -> Iterator[Kept]:
    """The chunks as they are; `counts` grows by theirs, and `audit` compares some of their rows."""
    done = 0
    for kept in every:
        yield kept
        audit.add(kept.shard, kept.candidates)
        counts += kept.counts
        done += kept.rows
        if on_rows:
            on_rows(done, to_do)


def write_shards(every: Iterable[Kept], splits: Sequence[str], folder: Path) -> list[Shard]:
    """Write the chunks, a shard for each stretch of rows and each split."""
    written: list[Shard] = []
    writers: list[ShardWriter] = []
    try:
        for kept in every:
            if not writers or writers[0].number != kept.shard:
                written += close(writers)
                writers = [ShardWriter(folder, split, kept.shard) for split in splits]
            for writer in writers:
                writer.write(kept.splits[writer.split])
    finally:
        written += close(writers)
    return written


def close(writers: Sequence[ShardWriter]) -> list[Shard]:
    return [shard for writer in writers if (shard := writer.close())]


def merge(part_dirs: Sequence[Path], tokenizer: Path, out_dir: Path, config: Tokenize) -> Facts:
    """Make the tokens folder of all parts (in any order); shards are hard links to theirs, or copies. Returns the facts.

    Raises DataError where nothing is left to train on.
    """
    parts = [json.loads((part / PART).read_text(encoding="utf-8")) | {"folder": part} for part in part_dirs]
    found = [(Shard(**shard), part["folder"]) for part in parts for shard in part["shards"]]
    found.sort(key=lambda pair: pair[0].number)
    several = len(parts[0]["splits"]) > 1
    splits = {split: out_dir / split if several else out_dir for split in parts[0]["splits"]}
    by_split = {split: [(shard, folder) for shard, folder in found if shard.split == split] for split in splits}
    facts = summary(parts, {split: [shard for shard, _ in pairs] for split, pairs in by_split.items()})
    if not by_split[TRAIN]:
        raise DataError(f"none of {facts['rows']} conversations is left to train on; dropped: {facts['dropped']}.")
    for split, folder in splits.items():
        folder.mkdir(exist_ok=True)
        for number, (shard, source) in enumerate(by_split[split]):
            link_or_copy(source / shard.file, folder / shard_name(number, len(by_split[split])))
        if not by_split[split]:
            write_empty(folder / shard_name(0, 1))
        write_index(folder, [shard for shard, _ in by_split[split]])
    if several:
        (out_dir / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}), encoding="utf-8")
    if parts[0]["mixture"]:
        (out_dir / SOURCES).write_text(json.dumps(parts[0]["mixture"]), encoding="utf-8")
    save(tokenizer, out_dir / "tokenizer", parts[0]["chat_template"])
    return facts


def layout_of(parquet: Path, config: Tokenize) -> MixtureLayout | None:
    """Return a mixture's layout. Raises DataError where the settings hold rows out of it a second time."""
    layout = MixtureLayout.of_parquet(parquet)
    if layout and config.validation_fraction:
        raise DataError(
            f"{parquet}: a mixture says itself what is held out; set sources.NAME.held_out, not tokenize.validation_fraction."
        )
    return layout


def summary(parts: Sequence[Facts], by_split: Mapping[str, Sequence[Shard]]) -> Facts:
    """Every row accounted for: rows = conversations of all splits + dropped."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part["counts"])

    def seen(names: Iterable[str]) -> dict[str, int]:
        return {name: counts[name] for name in names if counts[name]}

    facts: Facts = {
        "rows": sum(part["rows"] for part in parts),
        "conversations": {split: sum(shard.rows for shard in found) for split, found in by_split.items()},
        "tokens": {split: sum(shard.tokens for shard in found) for split, found in by_split.items()},
        "supervised_tokens": {split: sum(shard.supervised_tokens for shard in found) for split, found in by_split.items()},
        "dropped": {reason: counts[reason] for reason in reasons.DROPS} | seen(reasons.BAD_ROWS),
        "truncated": counts[reasons.TRUNCATED],
        "oddities": {oddity: counts[oddity] for oddity in reasons.ODDITIES} | seen(reasons.TEMPLATE_EFFECTS),
        "compared_with_hugging_face": counts[reasons.COMPARED],
        **encoding(parts),
    }
    prefix = f"{reasons.IGNORED}."
    if ignored := {
        name.removeprefix(prefix): count for name, count in sorted(counts.items()) if name.startswith(prefix) and count
    }:
        facts[reasons.IGNORED] = ignored
    kept, dropped = sum(facts["conversations"].values()), sum(facts["dropped"].values())
    assert kept + dropped == facts["rows"], facts
    return facts


def encoding(parts: Sequence[Facts]) -> Facts:
    """How the rows were encoded. Raises DataError where the parts were not encoded alike: begun on two days, for a template
    that writes the date."""
    found = [part["encoding"] for part in parts]
    alike = {json.dumps({name: one[name] for name in one if name not in ("backend", "fallback")}) for one in found}
    if len(alike) > 1:
        raise DataError(f"parts were encoded differently ({' and '.join(sorted(alike))}); set tokenize.template_date.")
    facts: Facts = json.loads(alike.pop()) | {"backend": ", ".join(sorted({one["backend"] for one in found}))}
    fallbacks = sorted({one["fallback"] for one in found if one["fallback"]})
    return facts | ({"fallback": fallbacks} if fallbacks else {})


def fingerprint(config: Config) -> Any:
    """The digest of the template's file, where tokenize.template names one."""
    from talaria.common.files import file_digest

    template = config.tokenize.template
    if template in (CHATML, OWN):
        return None
    if not Path(template).is_file():
        raise DataError(f"tokenize.template: {template}: no such file; give chatml, own or a file of Jinja.")
    return {"template": file_digest(Path(template))}
