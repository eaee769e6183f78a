"""The proof that a model family is trained right: a tiny model of it, trained by Talaria and by a plain loop.

python -m tests.train.family_proof      prints the table of docs/models.md
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from talaria.base_model.families import FAMILIES
from talaria.store.store import Store
from talaria.train.model.causal_lm import ModelOptions
from talaria.train.model.loading import load_model, load_whole
from talaria.train.train_state import TrainJob

from tests.support import tiny_pipeline
from tests.train import ranks
from tests.train.plain_loop import plain_loop
from tests.train.tiny_models import batch_of, conversations, save_tiny

STEPS = 12
BOUND = 1e-5
SETTINGS = {"max_steps": STEPS, "max_tokens_per_device": 160, "lr": 2e-3, "min_lr": 1e-4, "clip": 0.5, "hang_timeout": 90}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 128,
    "rope_theta": 1e4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
TINY: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 8, "tie_word_embeddings": False},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "phi3": {"partial_rotary_factor": 0.75, "max_position_embeddings": 256, "rope_parameters": LONGROPE},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "smollm3": {"no_rope_layers": [1, 1, 0]},
}
"""What is the family's own, at a size at which it shows: conversations are longer than the windows."""
OWN = {
    "gemma3_text": "sliding windows in most layers, two rotary embeddings, norms on both sides of a block, scaled embedding",
    "granite": "factors on embedding, residual, attention and logits",
    "llama": "",
    "mistral": "sliding window",
    "olmo3": "sliding windows in most layers, norms after a block, norms of whole queries and keys",
    "phi3": "fused projections, partial rotary embedding of the kind longrope",
    "qwen2": "biases",
    "qwen3": "norms of query and key heads",
    "qwen3_moe": "experts",
    "smollm3": "layers without rotary embedding",
}
"""The same in words, for docs/models.md."""


@dataclass(frozen=True)
class Proof:
    """Largest relative differences between Talaria and the plain loop; `perturbed` is absolute."""

    loss: float
    norm: float
    weights: float
    packed: float
    perturbed: float
    moved: float
    """The least that a weight has moved: a proof of nothing if they stayed."""


def save_family(family: str, folder: Path, base: Path) -> Path:
    """Save a tiny model of the family, with the base's tokenizer and vocabulary."""
    from transformers import AutoConfig

    ends = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": 0}
    rows = AutoConfig.from_pretrained(base).vocab_size
    save_tiny(folder, family, **({"vocab_size": rows, "initializer_range": 0.1} | ends | TINY[family]))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / name, folder / name)
    return folder


def prove(family: str, inputs: Mapping[str, Path], root: Path) -> Proof:
    """Train both ways and compare."""
    base = save_family(family, root / "base", inputs["base"])
    job = TrainJob(tiny_pipeline.config(train=SETTINGS), inputs["tokenize"], base, root / "run")
    ranks.run(job)
    plain, ours = plain_loop(job, STEPS), ranks.steps(job.output)
    export = load_whole(job.output / "model", dtype=torch.float32, attn_implementation="eager").eval()
    trained = dict(export.named_parameters())
    texts = conversations([5, 1, 17, 40])
    with torch.no_grad():
        packed = load_model(job.output / "model", ModelOptions("fp32"), "cpu")
        solo = [export(torch.from_numpy(text).long()[None]).logits[0] for text in texts]
        together = packed.logits(batch_of(texts)).split([len(text) for text in texts])
        changed = [*texts[:2], (texts[2] + 1) % 200, texts[3]]
        after = packed.logits(batch_of(changed)).split([len(text) for text in texts])
    others = [0, 1, 3]
    return Proof(
        loss=max(_apart(got["loss"], want) for got, want in zip(ours, plain.losses, strict=True)),
        norm=max(_apart(got["grad_norm"], want) for got, want in zip(ours, plain.norms, strict=True)),
        weights=max(_difference(trained[name].data, param.data) for name, param in plain.model.named_parameters()),
        packed=max(_difference(got, want) for got, want in zip(together, solo, strict=True)),
        perturbed=max(float((after[place] - together[place]).abs().max()) for place in others),
        moved=_moved(export, base),
    )


def _apart(got: float, want: float) -> float:
    return abs(got - want) / abs(want)


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp(min=1e-12))


def _moved(export: torch.nn.Module, base: Path) -> float:
    """Return the least relative change of a weight."""
    before = dict(load_whole(base, dtype=torch.float32).named_parameters())
    return min(_difference(param.data, before[name].data) for name, param in export.named_parameters())


def main() -> None:
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="talaria-families-"))
    outputs = tiny_pipeline.prepare(Store(root / "store"), tiny_pipeline.config())
    inputs = {name: output.path for name, output in outputs.items()}
    print("| model_type | its own | losses | gradient norms | final weights | packed, solo |")
    print("| --- | --- | --- | --- | --- | --- |")
    for family in FAMILIES:
        proof = prove(family, inputs, root / family)
        shown = (f"{value:.1e}" for value in (proof.loss, proof.norm, proof.weights, proof.packed))
        print(f"| `{family}` | {' | '.join([OWN[family], *shown])} |", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
