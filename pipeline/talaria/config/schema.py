"""Every setting of Talaria: one frozen model a stage, and the only place where a default lives.

A field's description is its documentation: `docs/configuration.md` and the trigger form are made from it.
`NotInKey` marks a setting that changes how fast or where a stage runs but not what it produces, so it takes no
part in the store's key (see store/store.py). Files and overrides are read in load.py.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from talaria.config.evaluation_settings import Evaluate, Promote
from talaria.config.names import check_experiment, check_model, model_name
from talaria.config.section import YEAR_SECONDS, InKeyUnlessDefault, Int, NotInKey, Section
from talaria.config.sweep_settings import Sweep


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


class Convert(Section):
    on_bad_row: Literal["error", "drop"] = Field("error", description="What to do with a row that cannot be converted.")
    fields: dict[str, str] = Field(
        {}, description="Names in the data: messages, role, content, system, tools, prompt, completion, input -> column or field."
    )
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
            ("convert.fields", self.fields, ("messages", "role", "content", "system", "tools", "prompt", "completion", "input")),
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


class Lora(Section):
    rank: int = Field(0, ge=0, le=100_000, description="0: full-parameter training.")
    alpha: float = Field(32.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter; the same on any number of ranks.")
    targets: str | list[str] = Field(
        "all-linear",
        description="Modules that get an adapter, as peft names them: all-linear, the ends of their names ([q_proj, v_proj]), or "
        "a regular expression of whole names.",
    )


class Train(Section):
    epochs: int = Field(3, ge=1, le=100_000, description="Number of passes over the training conversations.")
    max_steps: Int | None = Field(None, ge=1, description="Stop after this many optimiser steps, whatever epochs says.")
    global_batch: int = Field(128, ge=1, le=1_000_000_000, description="Conversations per optimiser step.")
    max_tokens_per_device: Annotated[int, NotInKey] = Field(
        9216, ge=8, le=1_000_000_000, description="Largest micro-batch on one rank, in tokens."
    )
    lr: float = Field(1e-5, gt=0, description="Peak learning rate, reached at the end of warm-up.")
    min_lr: float = Field(1e-6, ge=0, description="Learning rate at the end of the cosine.")
    warmup_fraction: float = Field(0.1, ge=0, le=1, description="Share of the steps with a linearly rising learning rate.")
    weight_decay: float = Field(0.1, ge=0, description="Weight decay of matrices; 1-D parameters have none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam: decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam: decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Adam: added to the denominator.")
    clip: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    reduction: Literal["token", "sample"] = Field("token", description="Mean over supervised tokens, or over conversations.")
    seed: Int = Field(42, ge=0, description="Epoch e's order is a permutation from (seed, e) alone.")
    precision: Literal["mixed", "fp32", "bf16"] = Field(
        "mixed",
        description="mixed: fp32 masters and Adam state, bf16 compute; bf16: bf16 weights and Adam state, stochastic rounding.",
    )
    fp8: bool = Field(
        False, description="8-bit matrix products of activations and weights, with mixed or bf16: faster, less exact."
    )
    schedule: Annotated[Literal["cosine", "linear", "constant", "wsd"], InKeyUnlessDefault] = Field(
        "cosine", description="Learning rate after warm-up; wsd: constant, then linear to min_lr in the last decay_fraction."
    )
    decay_fraction: Annotated[float, InKeyUnlessDefault] = Field(
        0.1, gt=0, le=1, description="Share of the steps in which the learning rate falls (schedule: wsd)."
    )
    loss: Annotated[str, InKeyUnlessDefault] = Field(
        "nll", description="nll; dft: NLL weighted with the token's own probability; or 'module:name' of your own function."
    )
    trainable: Annotated[list[str], InKeyUnlessDefault] = Field(
        ["*"], description="Patterns of the parameters that are trained, such as model.layers.*."
    )
    freeze: Annotated[list[str], InKeyUnlessDefault] = Field(
        [], description="Patterns of parameters that stay as they are, whatever trainable says, such as *.embed_tokens.*."
    )
    lora: Lora = Lora()
    patience: Int | None = Field(None, ge=1, description="Stop after this many evaluations without a better held-out loss.")
    eval_every: Int | None = Field(
        None, ge=1, description="Steps between held-out evaluations; absent: at the end of each epoch only."
    )
    save_every: Annotated[Int, NotInKey] = Field(
        1000, ge=1, description="Steps between checkpoints; one is also saved at each epoch's end."
    )
    save_minutes: Annotated[float, NotInKey] = Field(
        15.0,
        ge=0,
        le=1e6,
        description="Minutes after which a checkpoint is saved beside those of save_every; 0: none.",
    )
    snapshot_seconds: Annotated[float, NotInKey] = Field(
        60.0,
        ge=0,
        le=1e6,
        description="Seconds between copies of the state to host memory, from which ranks that died are started again; 0: none.",
    )
    restarts: Annotated[int, NotInKey] = Field(
        3,
        ge=0,
        le=1_000,
        description="Starts of ranks that died, without a new step between them, before it is given up.",
    )
    compare_every: Annotated[int, NotInKey] = Field(
        100,
        ge=0,
        le=1_000_000_000,
        description="Steps between comparisons of weights that all ranks hold, bit by bit; 0: none.",
    )
    keep_last: Annotated[int, NotInKey] = Field(2, ge=1, le=10_000, description="Checkpoints kept for resuming.")
    keep_epochs: bool = Field(False, description="Export a model at each epoch's end, each a version of its own.")
    keep_best: bool = Field(False, description="Export the model with the lowest held-out loss.")
    prefetch: Annotated[int, NotInKey] = Field(2, ge=1, le=1_000, description="Steps prepared ahead by the background thread.")
    num_processes: Annotated[int, NotInKey] = Field(
        0, ge=0, le=1_024, description="Ranks on this machine; 0: one per GPU, or 1 on CPU."
    )
    num_machines: Annotated[int, NotInKey] = Field(1, ge=1, le=100_000, description="Machines that train together.")
    sharding: Annotated[Literal["auto", "replicate", "shard", "hybrid"], NotInKey] = Field(
        "auto",
        description="Ranks with room for whole weights and gradients keep them; others: shard, hybrid (over groups), "
        "auto (hybrid over several nodes).",
    )
    shard_size: Annotated[int, NotInKey] = Field(
        0, ge=0, le=102_400_000, description="Ranks per shard group (hybrid); 0: a node's ranks."
    )
    offload: Annotated[Literal["none", "optimizer"], NotInKey] = Field(
        "none", description="optimizer: masters and Adam state in host memory, for models that a GPU does not hold otherwise."
    )
    context_parallel_size: Annotated[int, NotInKey] = Field(
        1,
        ge=1,
        le=1024,
        description="Ranks that share the tokens of each micro-batch, for conversations that no device holds; "
        "each then takes max_tokens_per_device of it.",
    )
    activation_checkpointing: Annotated[Literal["auto", "off", "selective", "full"], NotInKey] = Field(
        "auto", description="Recompute activations in the backward pass; auto: as little as fits in memory."
    )
    kernels: Annotated[Literal["auto", "plain"], NotInKey] = Field(
        "auto", description="auto: fused layers where the architecture has them; plain: Hugging Face's own layers."
    )
    deterministic: Annotated[bool, NotInKey] = Field(
        False, description="Make runs on a GPU bit-reproducible (runs on a CPU always are); costs 6% of the speed."
    )
    hang_timeout: Annotated[float, NotInKey] = Field(
        600.0, gt=0, le=YEAR_SECONDS, description="Seconds without progress after which all ranks stop."
    )
    stop_grace: Annotated[float, NotInKey] = Field(
        300.0, gt=0, le=YEAR_SECONDS, description="Seconds that ranks get to save after SIGTERM."
    )

    profile_steps: Annotated[int, NotInKey] = Field(
        0, ge=0, le=1_000, description="Steps to trace with PyTorch's profiler, into the folder profile/ of the training."
    )
    report_to: Annotated[list[Literal["wandb", "tensorboard"]], NotInKey] = Field(
        [], description="Services that get the metrics as well, beside MLflow; their packages must be installed."
    )

    @model_validator(mode="after")
    def _loss_is_known(self) -> Train:
        module, colon, name = self.loss.partition(":")
        if self.loss not in ("nll", "dft") and not (module and colon and name):
            raise ValueError(f"train.loss should be nll, dft or 'module:name' of your own function, got {self.loss!r}")
        return self

    @model_validator(mode="after")
    def _adapters_freeze_the_rest(self) -> Train:
        if self.lora.rank and (self.trainable != ["*"] or self.freeze):
            raise ValueError("train.trainable and train.freeze have no place beside train.lora.rank, which trains adapters only")
        return self

    @model_validator(mode="after")
    def _offload_needs_whole_weights(self) -> Train:
        if self.offload == "optimizer" and self.sharding in ("shard", "hybrid"):
            raise ValueError(f"offload: optimizer keeps whole weights on each GPU, which sharding: {self.sharding} does not")
        return self

    @model_validator(mode="after")
    def _fp8_needs_bf16_compute(self) -> Train:
        if self.fp8 and self.precision == "fp32":
            raise ValueError("fp8 needs precision mixed or bf16")
        return self


class Registry(Section):
    model: Annotated[str, AfterValidator(check_model)] | None = Field(
        None, description="Registered model's name; absent: the configuration's name. Dots become dashes, which MLflow requires."
    )
    experiment: Annotated[str, AfterValidator(check_experiment)] = Field("talaria", description="MLflow experiment.")
    artifacts: Literal["store", "server"] = Field(
        "store",
        description="Where a new experiment keeps its files: on the store's disk (no copy of the weights), or with the server.",
    )
    gpu_hour_price: float | None = Field(None, ge=0, description="Price of one GPU for an hour, in your currency.")
    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        description="Licence of the models, as the hub writes it (apache-2.0), for `talaria publish`; absent: the base model's.",
    )


class Serving(Section):
    """Where the champion is served, for the DAGs (Airflow only)."""

    url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
        description="Address of `talaria serve` without /v1: http://127.0.0.1:8000; absent: no DAG waits for a server.",
    )
    swap_seconds: float = Field(
        900.0, ge=0, le=86_400, description="Seconds in which the server should have taken up a promoted version."
    )


class Watch(Section):
    """When the DAG watch-champion rolls a served champion back (Airflow only)."""

    sample: int = Field(50, ge=1, le=100_000, description="Prompts of each of evaluate.tasks that the served champion answers.")
    margin: float = Field(0.1, ge=0, le=1, description="A score that is lower by more than this is a fall, and is rolled back.")


class Schedule(Section):
    cron: str | None = Field(None, description="Cron expression for scheduled retraining.")
    timezone: str = Field("UTC", description="Time zone of the cron expression, as IANA names it, for example Europe/Berlin.")
    on_new_revision: bool = Field(False, description="Start a run when the data set's revision on the hub changes.")
    poll_seconds: float = Field(300.0, ge=1, le=86_400, description="Seconds between checks of the hub.")
    skip_unchanged: bool = Field(
        True, description="Skip a scheduled run whose data, model and settings the champion already has."
    )
    deadline_hours: float | None = Field(
        None, gt=0, le=YEAR_SECONDS / 3600, description="Report a run that is not done this long after it was queued."
    )
    monthly_budget: float | None = Field(
        None, ge=0, description="Skip scheduled runs once this model's trainings of the last 30 days cost so much."
    )
    owner: str = Field("talaria", min_length=1, description="Owner of the configuration's own DAG.")
    pool: str = Field("gpu", min_length=1, description="Airflow pool whose slots its training and evaluation take.")
    queue: str = Field("gpu", min_length=1, description="Celery queue of the workers that serve them.")

    @model_validator(mode="after")
    def _can_be_kept(self) -> Schedule:
        try:
            ZoneInfo(self.timezone)
        except (ValueError, OSError, KeyError):  # a path, a folder of zones, ZoneInfoNotFoundError
            raise ValueError(f"schedule.timezone {self.timezone!r} is no time zone; write for example Europe/Berlin") from None
        return self


_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Also a folder's name, and the end of a metric's."""


class Alerts(Section):
    """Who hears of failures, questions, decisions and of a training in trouble (Airflow only)."""

    webhook: str | None = Field(
        None, description="Airflow connection whose password is the webhook's address; absent: TALARIA_WEBHOOK."
    )
    email: str | None = Field(None, description="Recipients of e-mail, separated by commas.")
    smtp: str = Field("smtp_default", min_length=1, description="Airflow connection of the mail server.")
    stall_seconds: float = Field(300.0, gt=0, le=YEAR_SECONDS, description="Tell when a training has made no step for so long.")
    patience: int = Field(5, ge=1, le=10_000, description="Tell when so many held-out losses in a row were no better.")
    free_disk_fraction: float = Field(
        0.05, ge=0, lt=1, description="Tell when less than this share of the store's disk is free while a model trains."
    )


class Config(Section):
    name: Annotated[str, AfterValidator(check_model)] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and, by default, of the model."
    )
    download: Download = Download()
    convert: Convert = Convert()
    sources: dict[str, Source] = Field(
        {}, description="Several sources instead of download and convert: name -> settings; see docs/data.md."
    )
    base: Base = Base()
    tokenize: Tokenize = Tokenize()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()
    promote: Promote = Promote()
    sweep: Sweep = Sweep()
    serving: Serving = Serving()
    watch: Watch = Watch()
    schedule: Schedule = Schedule()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _budget_needs_a_price(self) -> Config:
        if self.schedule.monthly_budget is not None and self.registry.gpu_hour_price is None:
            raise ValueError("schedule.monthly_budget needs registry.gpu_hour_price")
        return self

    @model_validator(mode="after")
    def _watching_needs_the_hub(self) -> Config:
        if self.schedule.on_new_revision and self.download.source != "hub":
            raise ValueError("schedule.on_new_revision needs download.source: hub")
        return self

    @model_validator(mode="after")
    def _sources_say_it_alone(self) -> Config:
        if not self.sources:
            return self
        if odd := next((name for name in self.sources if not _SOURCE_NAME.fullmatch(name)), None):
            raise ValueError(f"sources: a name has letters, digits, - and _ (at most 64), not {odd!r}")
        for section, given in (("download", self.download != Download()), ("convert", self.convert != Convert())):
            if given:
                raise ValueError(f"{section} has no place beside sources: give each source its own, as sources.NAME.{section}")
        if self.tokenize.validation_fraction:
            raise ValueError("tokenize.validation_fraction has no place beside sources: set sources.NAME.held_out")
        if self.schedule.on_new_revision:
            raise ValueError("schedule.on_new_revision watches one data set: with sources, set schedule.cron")
        if any(source.convert.shards > 1 for source in self.sources.values()):
            raise ValueError("sources: convert.shards has no place in a source: a mixture is converted in one process")
        if all(source.held_out == 1 for source in self.sources.values()):
            raise ValueError("sources: each is held out whole, and nothing is left to train on")
        return self

    @property
    def downloads(self) -> list[Download]:
        """Where the data comes from, source by source."""
        return [source.download for source in self.sources.values()] or [self.download]

    @property
    def data_origin(self) -> str:
        """What people call the data; of many sources the first ones, for MLflow's names are short."""
        names = list(dict.fromkeys(download.origin for download in self.downloads))
        shown = names[:4]
        return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    @property
    def holds_out(self) -> bool:
        """Whether conversations are held out, so that losses can be measured on them."""
        return bool(self.tokenize.validation_fraction) or any(source.held_out for source in self.sources.values())

    def key_fields_of(self, section: str) -> Any:
        """The settings of a section that decide what a stage makes; of download and convert in order of the sources."""
        if not self.sources or section not in ("download", "convert"):
            return getattr(self, section).key_fields()
        if section == "download":
            return [[name, source.download.key_fields()] for name, source in self.sources.items()]
        return [
            [name, source.model_dump(mode="json", exclude={"download", "convert"}) | {"convert": source.convert.key_fields()}]
            for name, source in self.sources.items()
        ]

    @model_validator(mode="after")
    def _the_gates_tasks_exist(self) -> Config:
        names = self.evaluate.tested
        for metric in self.promote.metrics:
            if metric.name.startswith("task/") and metric.name.split("/")[1] not in names:
                raise ValueError(f"promote.metrics names {metric.name}, and evaluate.tasks has {', '.join(names) or 'no task'}")
        return self

    @property
    def registered_name(self) -> str:
        """Name of the registered model, as MLflow takes it."""
        return model_name(self.registry.model or self.name)

    @property
    def renamed(self) -> str | None:
        """A sentence for people where the registered model is not called as they wrote it, else None."""
        written = self.registry.model or self.name
        if written == self.registered_name:
            return None
        return f"The registered model of {written!r} is called {self.registered_name!r}: MLflow takes no dots in a model's name."

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name, as it is logged to MLflow; of sources, what differs from the defaults."""
        sources = {name: source.model_dump(mode="json", exclude_defaults=True) for name, source in self.sources.items()}
        return dict(_flatten(self.model_dump(mode="json") | {"sources": sources}))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
