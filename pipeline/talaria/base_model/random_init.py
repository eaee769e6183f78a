"""A Qwen3 model from scratch: a byte-level BPE tokenizer trained on the messages, and random weights.

For demonstrations and tests: the same tokenizer structure, control tokens, architecture and file layout as the real one, at a
size that trains in seconds. The same settings give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.config.data_settings import ModelShape
from talaria.data.messages_parquet import open_parquet
from talaria.tokenization import chatml as chat
from talaria.tokenization.tokenizer_folder import TEMPLATE_FILE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen3's pre-tokenizer."""
SPECIAL = (
    chat.END_OF_TEXT, chat.START, chat.END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Tokens of their own, but text like any other: they may stand in content."""
VOCABULARY_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of this, which suits matrix products on a GPU."""
TRAINING_ROWS = 50_000
"""A tokenizer is trained on at most so many conversations, evenly spread over the parquet."""
OWN_TEMPLATE = Path(__file__).with_name("random_chat_template.jinja")
"""The chat template that the tokenizer comes with, as Qwen3's comes with one (tokenize.template: own)."""


def train_tokenizer(parquet: Path, vocab_size: int, out_dir: Path) -> None:
    """Train on the messages and write tokenizer.json and tokenizer_config.json; `vocab_size` includes the control tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(parquet), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out_dir / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": chat.END_OF_TEXT,
        "pad_token": chat.END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(OWN_TEMPLATE, out_dir / TEMPLATE_FILE)


def texts(parquet: Path) -> Iterator[str]:
    """The text of an even sample of the conversations, tools and calls too."""
    file = open_parquet(parquet)
    every = -(-file.metadata.num_rows // TRAINING_ROWS)
    columns = [name for name in ("messages", "tools") if name in file.schema_arrow.names]
    row = 0
    for batch in file.iter_batches(columns=columns):
        for index in range(-row % every, len(batch), every):
            yield from _texts_of({name: batch.column(name)[index].as_py() for name in columns})
        row += len(batch)


def _texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    for message in row["messages"] or []:
        yield f"{message['role']}\n{message['content'] or ''}{message.get('tool_calls') or ''}"
    if row.get("tools"):
        yield row["tools"]


def write_model(folder: Path, shape: ModelShape, vocab_size: int, end_of_text: int, seed: int) -> None:
    """config.json and model.safetensors of a Qwen3 model with tied embeddings and random float32 weights."""
    from safetensors.numpy import save_file

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        **shape.model_dump(),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(dict(weights(config, seed)), folder / "model.safetensors", metadata={"format": "pt"})


def weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Tensors under the names of transformers' Qwen3ForCausalLM, initialised as it does: normal(0, 0.02), norms 1."""
    import numpy as np

    random = np.random.default_rng(seed)
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def normal(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), np.float32) * np.float32(config["initializer_range"])

    yield "model.embed_tokens.weight", normal(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{prefix}.self_attn.q_proj.weight", normal(queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", normal(keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", normal(keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", normal(hidden, queries)
        yield f"{prefix}.self_attn.q_norm.weight", np.ones(head, np.float32)
        yield f"{prefix}.self_attn.k_norm.weight", np.ones(head, np.float32)
        yield f"{prefix}.post_attention_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{prefix}.mlp.gate_proj.weight", normal(wide, hidden)
        yield f"{prefix}.mlp.up_proj.weight", normal(wide, hidden)
        yield f"{prefix}.mlp.down_proj.weight", normal(hidden, wide)
    yield "model.norm.weight", np.ones(hidden, np.float32)
