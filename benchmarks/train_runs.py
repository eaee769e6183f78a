"""One measured run of the training benchmark, in a process of its own: this project's trainer, or TRL's."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import parse
from pipeline.train import attention as packed_attention
from pipeline.train import attention_cudnn, metrics, world
from pipeline.train.guards import StopSignal, Watchdog
from pipeline.train.loop import Job, Trainer
from pipeline.train.model import describe

Result = dict[str, Any]


def run_ours(model: Path, tokens: Path, output: Path, settings: dict[str, Any], warm: int, profile: bool) -> Result:
    """Steps of the trainer's own loop; the export at its end is left out."""
    steps = settings["max_steps"]
    config = parse({"name": "benchmark", "train": {"save_every": 10**6, **settings}}, "benchmark")
    output.mkdir(parents=True)
    trainer = Trainer(Job(config, tokens, model, output), world.join(600), StopSignal(), Watchdog(3600.0, print))
    trainer._set_up()
    trainer._resume()
    trainer._save_due = lambda: False  # type: ignore[method-assign]
    watch = Watch(trainer.stepper.run, profile_at=steps if profile else None)
    trainer.stepper.run = watch  # type: ignore[method-assign]
    trainer._steps()
    everything = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    records = everything[warm : steps - profile]
    seconds = sum(r["seconds"] for r in records)
    per_token = [r["seconds"] / r["tokens"] for r in records]
    return {
        "kernels": describe(trainer.model),
        "tokens_per_second": sum(r["tokens"] for r in records) / seconds,
        "mfu": sum((r["mfu"] or 0) * r["seconds"] for r in records) / seconds,
        "data_wait": sum(r["data_wait_seconds"] for r in records) / seconds,
        "p99_over_median": float(np.quantile(per_token, 0.99)) / statistics.median(per_token),
        "compiled_after_10": watch.compiled[-1] - watch.compiled[min(9, len(watch.compiled) - 1)],
        "micro_batches": watch.micro_batches / steps,
        "losses": [round(r["loss"], 4) for r in everything],
        **memory(),
        **({"profile": watch.profile} if profile else {}),
    }


class Watch:
    """Stands around Stepper.run: counts what is compiled, and profiles one step."""

    def __init__(self, run: Callable[..., Any], profile_at: int | None) -> None:
        self.run, self.profile_at = run, profile_at
        self.compiled: list[int] = []
        self.micro_batches = 0
        self.profile: dict[str, float] = {}
        self._triton = 0
        try:
            import triton
        except ImportError:
            return
        triton.knobs.runtime.jit_post_compile_hook = self._count

    def _count(self, **_: Any) -> None:
        self._triton += 1

    def __call__(self, prepared: Any, *args: Any) -> Any:
        self.micro_batches += len(prepared.batches)
        if prepared.plan.index + 1 == self.profile_at:
            self.profile, outcome = profiled(lambda: self.run(prepared, *args))
        else:
            outcome = self.run(prepared, *args)
        built = attention_cudnn._build.cache_info().misses
        self.compiled.append(self._triton + built + torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return outcome


def run_trl(model: Path, tokens: Path, output: Path, settings: dict[str, Any], steps: int, warm: int) -> Result:
    """TRL's SFTTrainer with Liger kernels and packing. settings: attention, max_length, accumulate, checkpointing."""
    from datasets import load_from_disk
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    attention = settings["attention"]
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
        gradient_accumulation_steps=settings["accumulate"],
        max_length=settings["max_length"],
        packing=True,
        max_steps=steps,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        use_liger_kernel=device == "cuda",
        gradient_checkpointing=settings["checkpointing"],
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

    trainer = Recording(
        model=network, args=config, train_dataset=load_from_disk(str(tokens)), processing_class=tokenizer, callbacks=[Clock()]
    )
    trainer.train()
    counted = batches[settings["accumulate"] * warm :]
    lengths = np.concatenate([conversation_lengths(position_ids) for position_ids in counted])
    seconds = marks[-1] - marks[warm - 1]
    count = flop_count_of(network)
    peak = metrics.peak_flops(torch.device(device))
    return {
        "tokens_per_second": float(lengths.sum()) / seconds,
        "mfu": count.of(lengths) / seconds / peak if peak else 0.0,
        **memory(),
    }


def conversation_lengths(position_ids: torch.Tensor) -> np.ndarray:
    """Of a packed row, whose position ids restart at 0 with each conversation."""
    ids = position_ids.flatten().cpu().numpy()
    return np.diff(np.append(np.flatnonzero(ids == 0), len(ids)))


def flop_count_of(network: Any) -> metrics.FlopCount:
    from types import SimpleNamespace

    return metrics.flop_count(SimpleNamespace(core=network, parameters=network.parameters))  # type: ignore[arg-type]


def memory() -> Result:
    if not torch.cuda.is_available():
        return {"peak_memory": 0, "process_memory": 0}
    free, total = torch.cuda.mem_get_info()
    return {"peak_memory": torch.cuda.max_memory_allocated(), "process_memory": total - free}


CLASSES = {
    # In this order: the first whose word a kernel's name holds.
    "attention": ("flash", "fmha", "sdpa", "attention", "varlen"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma"),
    "norms": ("_norm_kernel", "_norm_backward", "_add_rows", "rms_norm"),
    "rotary": ("_rope",),
    "swiglu": ("_swiglu",),
    "loss": ("_softmax_nll",),
    "optimiser": ("_adamw", "lpnorm", "multi_tensor"),
    "casts to fp8": ("_quantize",),
    "embedding": ("index", "sort", "radix", "embedding"),
    "fill and copy": ("memset", "memcpy", "fill", "copy"),
}


def profiled(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Milliseconds on the device by class of kernel; how long it stood idle, and before which kernels; the slowest kernels."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        outcome = run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    by_class, by_name, idle = Counter[str](), Counter[str](), Counter[str]()
    reached, last = events[0][0], "start"
    for begin, end, name in events:
        kind = next((kind for kind, words in CLASSES.items() if any(word in name.lower() for word in words)), "other")
        by_class[kind] += end - begin
        by_name[f"{kind}: {name[:60]}"] += end - begin
        if begin > reached:
            idle[f"idle: {last[:40]} -> {name[:40]}"] += begin - reached
        reached, last = max(reached, end), name
    total = {"(busy)": sum(by_class.values()), "(idle)": sum(idle.values()), "(wall)": wall * 1e6}
    rows = [*by_class.most_common(), *total.items(), *by_name.most_common(25), *idle.most_common(12)]
    return {name: microseconds / 1e3 for name, microseconds in rows}, outcome
