"""A model small enough to train within a test: it learns to answer "Say green" with "green!" in a few dozen steps."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from talaria.base_model import stage as base
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.store.store import Output, Store, output_key
from talaria.tokenization import stage as encode

COLOURS = ("green", "blue", "red", "white")
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}

SLOWER = {
    **SHAPE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""A step takes some 0.15 s on two CPU ranks: long enough to be killed in the middle."""


def config(**sections: Any) -> Config:
    tree = {
        "name": "small",
        "download": {"source": "sample"},
        "base": {"source": "random", "vocab_size": 400, "shape": SHAPE},
        "tokenize": {"max_tokens": 128, "validation_fraction": 0.2},
        "train": {"global_batch": 16, "max_tokens_per_device": 512, "precision": "fp32", "lr": 1e-2},
        "evaluate": {"prompts": 8, "max_new_tokens": 8},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return parse(tree, "test")


def write_messages(path: Path, rows: int = 200) -> None:
    """Conversations of one or two turns; the words before the order differ, so that hardly a row comes twice."""
    import polars as pl

    draw = random.Random(0)
    conversations = []
    for row in range(rows):
        messages = []
        for _ in range(1 + row % 2):
            colour = draw.choice(COLOURS)
            messages += [
                {"role": "user", "content": f"{draw.randrange(10**6)} Say {colour}"},
                {"role": "assistant", "content": f"{colour}!"},
            ]
        conversations.append(messages)
    pl.DataFrame({"id": range(rows), "messages": conversations}).write_parquet(path)


def train(model: Path, tokens: Path, out: Path, steps: int, lr: float = 1e-2, log: Path | None = None) -> None:
    """A plain loop over whole batches; saves a Hugging Face folder at `out`, and a line a step to `log`."""
    import numpy as np
    import torch
    from talaria.tokenization.dataset import open_tokens
    from talaria.train.batching.packing import pack
    from talaria.train.model.causal_lm import ModelOptions, sum_loss
    from talaria.train.model.loading import load_model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = open_tokens(tokens)["train"]
    assert data is not None
    network = load_model(model, ModelOptions("fp32"), "cpu")
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    order = np.random.default_rng(0)
    for step in range(1, steps + 1):
        indices = order.choice(len(data), 16)
        ids, mask, offsets = data.gather(indices)
        batch = pack(ids, mask, np.diff(offsets), data.rows[indices])
        loss = sum_loss(network, batch) / len(batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if log:
            line = {"step": step, "epoch": step / 10, "loss": float(loss.detach()), "lr": lr, "mfu": None, "time": 1.7e9 + step}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
    network.hf.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (out / name).write_bytes((model / name).read_bytes())
    (out / "README.md").write_text("# first card\n")


def put(store: Store, stage: str, write: Any, inputs: dict[str, Output], settings: Any = None, outside: Any = None) -> Output:
    """An output of the store, made by `write(folder) -> facts`."""
    keys = {name: output.key for name, output in inputs.items()}
    key = output_key(stage, 1, settings or {}, keys, outside)
    return store.run(stage, key, write, described_by={"settings": settings or {}, "inputs": keys, "outside": outside})


def prepare(store: Store, config: Config, revision: str = "c0ffee") -> dict[str, Output]:
    """download, convert, base and tokenize of the small data set."""
    outputs: dict[str, Output] = {}

    def download(folder: Path) -> dict[str, Any]:
        (folder / "data").mkdir()
        (folder / "data" / "rows.json").write_text("[]")
        return {"rows": 200}

    def convert(folder: Path) -> dict[str, Any]:
        write_messages(folder / "messages.parquet")
        return {"rows": 200, "dropped": {"unknown role": 3}}

    outputs["download"] = put(store, "download", download, {}, outside={"commit": revision})
    outputs["convert"] = put(store, "convert", convert, {"download": outputs["download"]})
    folders = {"convert": outputs["convert"].path}
    outputs["base"] = put(store, "base", lambda folder: base.run(config, folders, folder), {"convert": outputs["convert"]})
    folders["base"] = outputs["base"].path
    inputs = {name: outputs[name] for name in ("convert", "base")}
    settings = config.tokenize.key_fields()
    outputs["tokenize"] = put(store, "tokenize", lambda folder: encode.run(config, folders, folder), inputs, settings)
    return outputs


def fill_training_folder(folder: Path, outputs: dict[str, Output], *, steps: int = 120, export_at: int = 20) -> dict[str, Any]:
    """A finished training folder: metrics, an evaluation, a kept model at `export_at`, and the final model."""
    base_folder, tokens = outputs["base"].path, outputs["tokenize"].path
    train(base_folder, tokens, folder / "exports" / f"step-{export_at:08d}", export_at)
    train(base_folder, tokens, folder / "model", steps, log=folder / "metrics.jsonl")
    (folder / "evals.jsonl").write_text(json.dumps({"step": steps, "epoch": 1.0, "loss": 0.5, "time": 1.7e9 + steps}) + "\n")
    status = {"state": "done", "step": steps, "total_steps": steps, "reason": None, "kind": None, "time": 1.7e9 + steps + 1}
    (folder / "status.json").write_text(json.dumps(status))
    return {"steps": steps}


@cache
def trained(root: Path) -> dict[str, Output]:
    """A store with everything up to the evaluated model, made once per folder."""
    from talaria.evaluation import stage as evaluate

    settings, store = config(), Store(root)
    outputs = prepare(store, settings)
    inputs = {name: outputs[name] for name in ("tokenize", "base")}
    outputs["train"] = put(store, "train", lambda folder: fill_training_folder(folder, outputs), inputs)
    folders = {name: outputs[name].path for name in ("train", "tokenize", "base")}
    inputs["train"] = outputs["train"]
    outputs["evaluate"] = put(store, "evaluate", lambda folder: evaluate.run(settings, folders, folder), inputs)
    return outputs
