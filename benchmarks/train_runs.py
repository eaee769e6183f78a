"""One measured run of the training benchmark, in a process of its own: this project's trainer, or TRL's."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from talaria.config.load import parse
from talaria.train.distributed import process_group as world
from talaria.train.kernels import attention as packed_attention
from talaria.train.kernels import cudnn_attention as attention_cudnn
from talaria.train.model.causal_lm import describe
from talaria.train.telemetry import flops as metrics
from talaria.train.telemetry.watchdog import StopSignal, Watchdog
from talaria.train.train_state import TrainJob
from talaria.train.train_step import TrainStep
from talaria.train.trainer import Trainer

from benchmarks.train_measure import Result, Sensors, memory, profiled

if TYPE_CHECKING:
    from benchmarks.train import Trl


def run_ours(model: Path, tokens: Path, output: Path, settings: dict[str, Any], steps: int, warm: int, profile: bool) -> Result:
    """`steps` steps of the trainer's own loop, and one more if it is to be profiled; left before anything is saved."""
    config = parse({"name": "benchmark", "train": {"save_every": 10**6, "max_steps": steps + 2, **settings}}, "benchmark")
    output.mkdir(parents=True, exist_ok=True)  # of all ranks
    watch = Watch(steps, profile)
    TrainStep.run = lambda stepper, *args: watch(stepper, *args)  # type: ignore[method-assign]
    trainer = Trainer(TrainJob(config, tokens, model, output), world.join(600), StopSignal(), Watchdog(3600.0, print))
    with Sensors() as sensors, contextlib.suppress(Enough):
        trainer.run()
    if not trainer.group.is_main:
        return {}
    everything = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    records = everything[warm:steps]
    seconds = sum(r["seconds"] for r in records)
    per_token = [r["seconds"] / r["tokens"] for r in records]
    return {
        "kernels": watch.kernels,
        "tokens_per_second": sum(r["tokens"] for r in records) / seconds,
        "mfu": sum((r["mfu"] or 0) * r["seconds"] for r in records) / seconds,
        "data_wait": sum(r["data_wait_seconds"] for r in records) / seconds,
        "p99_over_median": float(np.quantile(per_token, 0.99)) / statistics.median(per_token),
        "compiled_after_10": watch.compiled[-1] - watch.compiled[min(9, len(watch.compiled) - 1)],
        "micro_batches": watch.micro_batches / len(watch.compiled),
        "tokens_of_step": [r["tokens"] for r in everything],
        "seconds_of_step": [r["seconds"] for r in everything],
        "losses": [round(r["loss"], 6) for r in everything],
        "balance": trainer.components.plan.sampled_quality()[0],
        **memory(),
        **sensors.result(),
        **({"profile": watch.profile} if profile else {}),
    }


class Enough(Exception):
    """Ends the trainer's loop from within."""


class Watch:
    """Stands in for TrainStep.run: counts what is compiled, profiles the step after the last, and then ends the loop."""

    run = TrainStep.run

    def __init__(self, steps: int, profile: bool) -> None:
        self.steps, self.ends = steps, steps + profile
        self.kernels = ""
        self.compiled: list[int] = []
        self.micro_batches = 0
        self.profile: dict[str, float] = {}
        self._triton = 0
        with contextlib.suppress(ImportError):
            import triton

            triton.knobs.runtime.jit_post_compile_hook = self._count

    def _count(self, **_: Any) -> None:
        self._triton += 1

    def __call__(self, stepper: TrainStep, prepared: Any, *args: Any) -> Any:
        step = prepared.plan.index + 1
        if step > self.ends:
            raise Enough
        self.kernels = describe(stepper.model)  # type: ignore[arg-type]
        if step > self.steps:
            self.profile, outcome = profiled(lambda: Watch.run(stepper, prepared, *args))
        else:
            outcome = Watch.run(stepper, prepared, *args)
        built = attention_cudnn._build.cache_info().misses
        self.compiled.append(self._triton + built + torch._dynamo.utils.counters["stats"]["unique_graphs"])
        self.micro_batches += len(prepared.batches)
        return outcome


def run_trl(model: Path, tokens: Path, output: Path, run: Trl, steps: int, warm: int) -> Result:
    """TRL's SFTTrainer with Liger kernels and packing."""
    from datasets import load_from_disk
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    attention = run.attention
    if attention != "sdpa":
        kernel = {"cuDNN": packed_attention.CUDNN, "FlashAttention-2": packed_attention.FLASH}[attention]
        if torch.cuda.is_available():
            packed_attention.choose = lambda *_: (kernel, "asked for")  # type: ignore[assignment]
        attention = packed_attention.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation=attention).to(device)
    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")
    config = SFTConfig(
        output_dir=str(output),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=run.accumulate,
        max_length=run.max_length,
        packing=True,
        max_steps=steps,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        use_liger_kernel=device == "cuda",
        gradient_checkpointing=run.checkpointing,
        optim="adamw_torch_fused",
        learning_rate=1e-5,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        dataloader_num_workers=2,
        disable_tqdm=True,
    )
    marks: list[float] = []
    batches: list[Any] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    class Recording(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(inputs["position_ids"].detach().cpu() if device == "cpu" else inputs["position_ids"].detach().clone())
            return super().training_step(model, inputs, *args, **kwargs)

    lora = LoraConfig(task_type="CAUSAL_LM", r=run.lora, lora_alpha=2 * run.lora, target_modules="all-linear")
    trainer = Recording(
        model=network,
        args=config,
        train_dataset=load_from_disk(str(tokens)),
        processing_class=tokenizer,
        callbacks=[Clock()],
        peft_config=lora if run.lora else None,
    )
    count = flop_count_of(trainer.model, network)
    with Sensors() as sensors:
        trainer.train()
    counted = batches[run.accumulate * warm :]
    lengths = np.concatenate([conversation_lengths(position_ids) for position_ids in counted])
    seconds = marks[-1] - marks[warm - 1]
    peak = metrics.peak_flops(torch.device(device))
    return {
        "tokens_per_second": float(lengths.sum()) / seconds,
        "mfu": count.of(lengths) / seconds / peak if peak else 0.0,
        "seconds_of_step": np.diff(marks).tolist(),
        **memory(),
        **sensors.result(),
    }


def conversation_lengths(position_ids: torch.Tensor) -> np.ndarray:
    """Of a packed row, whose position ids restart at 0 with each conversation."""
    ids = position_ids.flatten().cpu().numpy()
    return np.diff(np.append(np.flatnonzero(ids == 0), len(ids)))


def flop_count_of(trained: Any, network: Any) -> metrics.FlopCount:
    """trained: the network, or peft's wrapper around it, which says what is frozen."""
    from types import SimpleNamespace

    return metrics.flop_count(SimpleNamespace(core=network, parameters=trained.parameters))  # type: ignore[arg-type]
