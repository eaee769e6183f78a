"""Settings of the data and the model it starts from: where rows come from, how they are read and tokenised."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from talaria.config.section import InKeyUnlessDefault, Int, NotInKey, Section


class Download(Section):
    source: Literal["hub", "local", "sample"] = Field("hub", description="Where the conversations come from.")
    repo: str = Field("teknium/OpenHermes-2.5", description="Data set on the Hugging Face hub (source: hub).")
    # The commit and the digests of the files stand in the key instead (talaria.data.download:fingerprint).
    revision: Annotated[str, NotInKey] = Field(
        "main", description="Branch, tag or commit; the commit it resolves to is recorded."
    )
    files: str = Field("*", description="Glob of the data files to take from the repository or folder.")
    sha256: str | None = Field(None, description="Expected digest of the one data file; a mismatch stops the run.")
    path: Annotated[Path | None, NotInKey] = Field(None, description="File or folder to read (source: local).")
    rows: Int = Field(6000, ge=1, description="Conversations to generate (source: sample).")
    tool_rows: Annotated[Int, InKeyUnlessDefault] = Field(
        0, ge=0, description="Conversations with tools to generate behind them (source: sample)."
    )
    seed: Int = Field(0, ge=0, description="Seed of the generator (source: sample).")

    @property
    def origin(self) -> str:
        """What people call the data: a repository, a path, or the bundled sample."""
        return {"hub": self.repo, "local": str(self.path), "sample": "talaria-sample"}[self.source]

    @model_validator(mode="after")
    def _local_needs_path(self) -> Download:
        if self.source == "local" and self.path is None:
            raise ValueError("download.path is needed when download.source is local")
        return self

    @model_validator(mode="after")
    def _source_reads_what_is_given(self) -> Download:
        if self.source == "hub" and self.path is not None:
            raise ValueError("download.path is given, and download.source hub does not read it: set download.source to local")
        if self.source != "sample" and self.rows != type(self).model_fields["rows"].default:
            raise ValueError(
                "download.rows is the size of the generated sample (download.source sample): "
                f"leave it at {type(self).model_fields['rows'].default}; to take the first rows of the data, set convert.rows"
            )
        return self


FIELDS = (
    "messages",
    "role",
    "content",
    "reasoning_content",
    "tool_calls",
    "system",
    "tools",
    "prompt",
    "completion",
    "input",
)
"""What convert.fields can give another name."""


class Convert(Section):
    on_bad_row: Literal["error", "drop"] = Field("error", description="What to do with a row that cannot be converted.")
    fields: dict[str, str] = Field({}, description=f"Names in the data: {', '.join(FIELDS)} -> column or field.")
    roles: dict[str, str] = Field(
        {}, description="Roles in the data -> system, developer, user, assistant, tool or function_call."
    )
    function: str | None = Field(None, description="'module:name' of your own function from LazyFrame to LazyFrame, run first.")
    drop_duplicates: bool = Field(False, description="Drop rows whose messages equal an earlier row's. Off, as in the reference.")
    drop_empty_answers: bool = Field(False, description="Drop rows with an empty assistant message. Off, as in the reference.")
    rows: Int | None = Field(None, ge=1, description="Take only the first N rows.")
    shards: Annotated[int, NotInKey] = Field(
        1, ge=1, le=10_000, description="Number of parts (files, ranges of bytes) that Airflow converts in parallel tasks."
    )

    @model_validator(mode="after")
    def _parts_need_no_other_rows(self) -> Convert:
        whole = {"rows": self.rows, "function": self.function, "drop_duplicates": self.drop_duplicates}
        if self.shards > 1 and (name := next((name for name, value in whole.items() if value), None)):
            raise ValueError(f"convert.shards has no place beside convert.{name}, which needs all rows in one process")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Convert:
        for setting, given, known in (
            ("convert.fields", self.fields, FIELDS),
            ("convert.roles", self.roles.values(), ("system", "developer", "user", "assistant", "tool", "function_call")),
        ):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(f"{setting} knows {', '.join(known)}, not {unknown[0]!r}")
        return self


class Source(Section):
    """One of the sources of a mixture: where its rows come from, how they are read, and how many are trained and held out."""

    download: Download = Field(description="Where the rows come from: the settings of the section download.")
    convert: Convert = Field(Convert(), description="How they are read: the settings of the section convert.")
    max_rows: Int | None = Field(None, ge=1, description="Most rows of it to train on, chosen by a hash of their content.")
    repeat: float = Field(1.0, gt=0, le=1000, description="Copies of each chosen row: 2 all twice, 0.5 half of them, 2.5 both.")
    held_out: float = Field(0.0, ge=0, le=1, description="Share held out, chosen by a hash of the content; 1: the whole source.")
    seed: Int = Field(0, ge=0, description="Another seed chooses other rows where max_rows or repeat leaves some out.")


class ModelShape(Section):
    """Size of a Qwen3 model made from random weights (base.source: random)."""

    hidden_size: int = Field(128, ge=8, le=1_000_000, description="Width of the residual stream.")
    intermediate_size: int = Field(384, ge=8, le=10_000_000, description="Width of the MLP.")
    num_hidden_layers: int = Field(4, ge=1, le=10_000, description="Decoder layers.")
    num_attention_heads: int = Field(4, ge=1, le=10_000, description="Query heads.")
    num_key_value_heads: int = Field(2, ge=1, le=10_000, description="Key and value heads; divides the query heads.")
    head_dim: int = Field(32, ge=2, le=100_000, multiple_of=2, description="Width of a head.")

    @model_validator(mode="after")
    def _heads_share_keys_evenly(self) -> ModelShape:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("base.shape.num_key_value_heads has to divide base.shape.num_attention_heads")
        return self


class Base(Section):
    source: Literal["hub", "local", "random"] = Field("hub", description="Where the base model comes from.")
    repo: str = Field("Qwen/Qwen3-4B-Base", description="Model on the Hugging Face hub (source: hub).")
    revision: str = Field("main", description="Branch, tag or commit; the commit it resolves to is recorded.")
    path: Path | None = Field(None, description="Folder of the model (source: local).")
    tokenizer: Path | None = Field(None, description="Tokenizer folder (source: random); absent: one is trained on the messages.")
    vocab_size: int = Field(2048, ge=300, le=10_000_000, description="Size of the tokenizer that is trained (source: random).")
    shape: ModelShape = Field(ModelShape(), description="Size of the model (source: random).")
    seed: Int = Field(0, ge=0, description="Seed of the random weights (source: random).")

    @property
    def origin(self) -> str:
        """What people call the model: a repository, a path, or random weights."""
        return {"hub": self.repo, "local": str(self.path), "random": "random weights"}[self.source]

    @model_validator(mode="after")
    def _local_needs_path(self) -> Base:
        if self.source == "local" and self.path is None:
            raise ValueError("base.path is needed when base.source is local")
        return self

    @model_validator(mode="after")
    def _source_reads_what_is_given(self) -> Base:
        if self.source == "hub" and self.path is not None:
            raise ValueError("base.path is given, and base.source hub does not read it: set base.source to local")
        if self.source != "random" and self.tokenizer is not None:
            raise ValueError(
                f"base.tokenizer is for random weights, and a model of base.source {self.source} has its own: leave it out"
            )
        return self


class Tokenize(Section):
    max_tokens: int = Field(9216, ge=8, le=1_000_000_000, description="Longest conversation kept, in tokens.")
    on_long: Literal["drop", "truncate"] = Field("drop", description="What to do with a longer conversation.")
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share held out, chosen by a hash of the content: stable, no duplicate in both."
    )
    template: str = Field(
        "chatml", description="Chat template: chatml, own (the tokenizer's), or a file of Jinja; see docs/tokens.md."
    )
    template_date: datetime.date | None = Field(
        None, description="Today's date for a template that writes it (Llama 3); absent: the day of the run."
    )
    reasoning: Literal["train", "mask", "drop"] = Field(
        "train", description="reasoning_content: in the loss, rendered but not in the loss, or taken out before rendering."
    )
    on_bad_row: Literal["error", "drop"] = Field("error", description="What to do with a row that cannot be encoded exactly.")
    supervise_newline: bool = Field(True, description="Count the line break after <|im_end|> in the loss, as the reference does.")
    backend: Annotated[Literal["auto", "fastokens", "tokenizers"], NotInKey] = Field(
        "auto", description="Encoder; both give the same ids, fastokens is about 50 times faster."
    )
    workers: Annotated[int, NotInKey] = Field(0, ge=0, le=1_024, description="Encoder threads; 0: one per core.")
    shards: Annotated[int, NotInKey] = Field(
        1, ge=1, le=10_000, description="Number of row ranges that Airflow tokenises in parallel tasks."
    )
    shard_rows: Int = Field(100_000, ge=1, description="Rows of the parquet per Arrow file.")
