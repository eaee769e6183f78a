"""A first look at a source: what its rows are, what of them is trained, and where a run would stop, from a sample in seconds.

The sample goes through the stages themselves, convert and, with a tokenizer, tokenize, so that what is said is what a run does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Convert, Download, Tokenize
from talaria.config.schema import Config
from talaria.data.conversation.content import ASSISTANT, SWITCHES
from talaria.data.conversation.drop_reasons import REASONS, WAY_OUT
from talaria.data.conversation.row_shape import RowShape
from talaria.data.convert_rows import write_messages
from talaria.data.messages_parquet import MESSAGES, open_parquet
from talaria.data.mixture import folders_of
from talaria.data.source_files import SourceFiles, search
from talaria.data.source_sample import sample_files
from talaria.tokenization.chatml_rows import not_rendered
from talaria.tokenization.parquet_chunks import chunks_of, read
from talaria.tokenization.tokenizer_folder import CHATML

Facts = dict[str, Any]
SAMPLE = "the sample"


def check(source: Path | None, config: Config, tokenizer: str | None = None) -> Facts:
    """Look at the first rows of each file of `source`, a file or a folder; None: at what the configuration names here.

    Returns counts of the sample by name, one conversation, and `stops`: the sentence that would end a run, or None; of several
    sources these under `sources`. Raises UserError where not even a sample can be read.
    """
    if not config.sources:
        return look(search(source) if source else _named(config.download, "download"), config, tokenizer)
    if source:
        folders = folders_of(source, config.sources)
        files = {name: search(folder, all_splits=True) for name, folder in folders.items()}
    else:
        files = {name: _named(one.download, f"sources.{name}.download") for name, one in config.sources.items()}
    found: Facts = {"sources": {}, "stops": None}
    for name, one in config.sources.items():
        alone = config.model_copy(update={"sources": {}, "download": one.download, "convert": one.convert})
        try:
            facts = look(files[name], alone, tokenizer)
        except UserError as error:
            raise type(error)(f"sources.{name}: {error}") from None
        found["sources"][name] = facts
        found["stops"] = found["stops"] or (facts["stops"] and f"sources.{name}: {facts['stops']}")
    return found


def _named(download: Download, setting: str) -> SourceFiles:
    """The files that the settings name, where they are on this machine. Raises DataError where they have to be fetched first."""
    if download.source != "local" or download.path is None:
        raise DataError(
            f"{setting}: {download.origin} is not on this machine; fetch it with `talaria download CONFIG --output raw`, "
            "then `talaria check raw CONFIG`."
        )
    return search(download.path, download.files)


def look(found: SourceFiles, config: Config, tokenizer: str | None) -> Facts:
    """Look at the files of one source."""
    with TemporaryDirectory(prefix="talaria-check-") as folder:
        work = Path(folder)
        samples = sample_files(found.files, work)
        parquet = work / MESSAGES
        converted = write_messages(samples, parquet, config.convert.model_copy(update={"on_bad_row": "drop"}))
        facts: Facts = {"files": len(found.files), "looked_at": len(samples), "rows": converted["rows_in"]}
        facts |= {name: converted[name] for name in ("shapes", "mapped", "not_carried", "columns") if name in converted}
        facts["not_read"] = _not_read(converted, config.convert)
        facts["dropped"] = {reason: count for reason, count in converted["dropped"].items() if count}
        examples = converted.get("examples", {})
        facts |= {"examples": examples, "left_out": found.left_out} | _messages(parquet)
        facts["stops"] = _stops(examples, config) or _not_rendered(parquet, config.tokenize)
        if tokenizer is not None:
            facts |= _tokens(parquet, tokenizer, work / "tokens", config, facts["stops"])
    return facts


def _stops(examples: dict[str, str], config: Config) -> str | None:
    """The sentence of the first row that a run would stop at: `examples` has one a reason, in the order of the rows."""
    if config.convert.on_bad_row == "drop":
        return None
    first = next(iter(examples.values()), None)
    return first and f"{first.removesuffix('.')}; {WAY_OUT}."


def _not_read(converted: Facts, settings: Convert) -> list[str]:
    """The columns that convert keeps beside the messages and reads nothing from, whatever they say."""
    shape = RowShape(settings.fields, settings.roles)
    only_lists = converted.get("shapes", {}).keys() <= set(shape.lists)
    read = shape.columns_of_lists if only_lists else shape.columns
    return [name for name in converted["columns"] if name not in read]


def _not_rendered(parquet: Path, settings: Tokenize) -> str | None:
    """The sentence of the first row that plain ChatML does not render, where it is the template; this needs no tokenizer."""
    if settings.template != CHATML:
        return None
    try:
        for chunk, rows in read(open_parquet(parquet), chunks_of(pq.read_metadata(parquet).num_rows, settings.shard_rows, 0, 1)):
            not_rendered(rows, chunk.start, SAMPLE, settings)
    except DataError as error:
        return str(error)
    return None


def _messages(parquet: Path) -> Facts:
    """Messages by role, answers that count and that are masked, and the first conversation."""
    roles: Counter[str] = Counter()
    trained = masked = empty = calls = 0
    table = pq.read_table(parquet, columns=["messages"])
    for messages in table.column("messages").to_pylist():
        for message in messages:
            roles[message["role"]] += 1
            if message["role"] == ASSISTANT:
                counts, says = is_trained(message), _says_something(message)
                trained, empty, masked = trained + (counts and says), empty + (counts and not says), masked + (not counts)
                calls += message.get("tool_calls") is not None
    first: list[dict[str, Any]] = next((row for row in table.column("messages").to_pylist() if row), [])
    return {
        "messages": dict(roles),
        "answers": {"trained": trained, "masked": masked, "empty": empty, "with_tool_calls": calls},
        "conversation": [{name: value for name, value in message.items() if value is not None} for message in first],
    }


def is_trained(message: dict[str, Any]) -> bool:
    """Whether the loss counts this message."""
    on = (message.get(name) is None or message[name] != 0 for name in SWITCHES)
    return message["role"] == ASSISTANT and all(on)


def _says_something(answer: dict[str, Any]) -> bool:
    return bool((answer.get("content") or "").strip()) or any(answer.get(name) for name in ("tool_calls", "reasoning_content"))


def _tokens(parquet: Path, tokenizer: str, folder: Path, config: Config, stops: str | None) -> Facts:
    """What tokenize makes of the sample, and its first conversation as the trainer reads it."""
    from talaria.tokenization.inspection import Folder
    from talaria.tokenization.stage import tokenize

    settings = config.tokenize.model_copy(update={"validation_fraction": 0.0})
    try:
        made = tokenize(parquet, tokenizer, folder, settings)
    except UserError as error:
        return {"stops": stops or str(error).replace(str(parquet), SAMPLE)}
    names = ("conversations", "tokens", "supervised_tokens", "oddities")
    facts = {name: made[name] for name in names} | {"dropped_by_tokenize": {k: v for k, v in made["dropped"].items() if v}}
    return {"tokenized": facts, "rendered": Folder(folder).sample("train", 0).spans}


def lines(facts: Facts) -> Iterator[str]:
    """The facts as lines for a person."""
    if "sources" in facts:
        for name, one in facts["sources"].items():
            yield f"source {name}:"
            yield from lines(one)
        return
    yield f"looked at {facts['rows']:,} rows of {facts['looked_at']:,} of {facts['files']:,} files"
    for title in ("left_out", "shapes", "mapped", "not_carried", "not_read", "messages", "answers"):
        if facts.get(title):
            value = facts[title]
            shown = (
                ", ".join(f"{name}: {count:,}" for name, count in value.items()) if isinstance(value, dict) else ", ".join(value)
            )
            yield f"{title.replace('_', ' ')}: {shown}"
    if facts["answers"]["empty"]:
        yield "  an empty answer teaches the model to end at once; convert.drop_empty_answers drops its row"
    for reason, count in facts["dropped"].items():
        yield f"dropped: {count:,} {reason} ({REASONS[reason]}); {facts['examples'].get(reason, '')}".rstrip("; ")
    if "tokenized" in facts:
        yield from (f"{name.replace('_', ' ')}: {value}" for name, value in facts["tokenized"].items())
    yield "one conversation:"
    if "rendered" in facts:
        yield "".join(f"[{span.text}]" if span.supervised else span.text for span in facts["rendered"])
        return
    for message in facts["conversation"]:
        mark = " (trained)" if is_trained(message) else ""
        said = {name: value for name, value in message.items() if name not in ("role", "content")}
        yield f"  {message['role']}{mark}: {message.get('content')}{f'  {said}' if said else ''}"
