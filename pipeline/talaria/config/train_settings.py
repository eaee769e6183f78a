"""Settings of the trainer."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from talaria.config.section import YEAR_SECONDS, InKeyUnlessDefault, Int, NotInKey, Section


class Lora(Section):
    rank: int = Field(0, ge=0, le=100_000, description="0: full-parameter training.")
    alpha: float = Field(32.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter; the same on any number of ranks.")
    targets: str | list[str] = Field(
        "all-linear",
        description="Modules that get an adapter, as peft names them: all-linear, the ends of their names ([q_proj, v_proj]), or "
        "a regular expression of whole names.",
    )

    @model_validator(mode="after")
    def _targets_can_match(self) -> Lora:
        if not self.targets or "" in list(self.targets):
            raise ValueError("train.lora.targets is empty: name the modules that get an adapter, or leave it at all-linear")
        try:
            re.compile(self.targets if isinstance(self.targets, str) else "")
        except re.error as error:
            raise ValueError(f"train.lora.targets: {self.targets!r} is no regular expression ({error})") from None
        return self

    @model_validator(mode="after")
    def _rank_is_said(self) -> Lora:
        if "rank" not in self.model_fields_set and (given := sorted(self.model_fields_set)):
            raise ValueError(
                f"train.lora.{given[0]} is given without train.lora.rank, so that all parameters would be trained: "
                "set train.lora.rank"
            )
        return self


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
    snapshot_copies: Annotated[int, NotInKey] = Field(
        1,
        ge=1,
        le=2,
        description="Copies of the state that are kept in host memory. 2: one is whole while the other is renewed or written to "
        "the disk, for twice the memory.",
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
    offload: Annotated[Literal["auto", "none", "optimizer"], NotInKey] = Field(
        "auto",
        description="optimizer: masters and Adam state in host memory, for models that a GPU does not hold otherwise; "
        "auto: with fp8, as much of it as makes micro-batches large enough for gradients of weights in 8 bits, else none.",
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
    def _learning_rate_falls(self) -> Train:
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ValueError(
                f"train.min_lr ({self.min_lr:g}) is above train.lr ({self.lr:g}), so that the learning rate would rise to it: "
                "lower train.min_lr"
            )
        if "decay_fraction" in self.model_fields_set and "schedule" not in self.model_fields_set:
            raise ValueError("train.decay_fraction is read by train.schedule wsd only: set train.schedule")
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Train:
        if not self.trainable or "*" in self.freeze:
            raise ValueError("train.trainable and train.freeze leave no parameter to train")
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
