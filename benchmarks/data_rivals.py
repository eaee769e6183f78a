"""What tokenising is measured against, each a process of its own: `python benchmarks/data_rivals.py NAME PARQUET TOKENIZER OUT`.

trl          TRL's own dataset preparation (SFTTrainer._prepare_dataset), with assistant masks: a call a row, a process a core
trl-default  the same as it comes, with dataset_num_proc left alone: in one process
batched      datasets.map(batched=True) around Hugging Face's encode_batch on rendered conversations; no masks
without      our own pipeline with the tokenizer left out: reads, assembles, masks and writes as many made-up ids, compares none
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

CORES = len(os.sched_getaffinity(0))
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)


def trl(parquet: Path, tokenizer: Path, output: Path, processes: int | None = CORES) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    data = load_dataset("parquet", data_files=str(parquet), cache_dir=str(output), split="train").select_columns(["messages"])
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    settings = SFTConfig(
        str(output), assistant_only_loss=True, dataset_num_proc=processes, max_length=None, use_cpu=True, bf16=False, report_to=[]
    )
    trainer = SimpleNamespace(chat_template=TEMPLATE, completion_only_loss=False, _tokenizer=encoder)
    ready = SFTTrainer._prepare_dataset(trainer, data, encoder, settings, False, None, "train")
    assert {"input_ids", "labels"} <= set(ready.column_names)


def batched(parquet: Path, tokenizer: Path, output: Path) -> None:
    from datasets import load_dataset
    from tokenizers import Tokenizer

    data = load_dataset("parquet", data_files=str(parquet), cache_dir=str(output), split="train").select_columns(["messages"])
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def encode(batch: dict[str, list[list[dict[str, str]]]]) -> dict[str, list[list[int]]]:
        texts = [
            "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
            for messages in batch["messages"]
        ]
        return {"input_ids": [encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False)]}

    data.map(encode, batched=True, remove_columns=["messages"])


def without(parquet: Path, tokenizer: Path, output: Path) -> None:
    import numpy as np
    from talaria.config.data_settings import Tokenize
    from talaria.tokenization import fastokens_backend as fast
    from talaria.tokenization import row_filter as select
    from talaria.tokenization import stage as encode
    from talaria.tokenization import tokenizer as tokenizers

    def made_up(texts: Sequence[str]) -> tuple[tokenizers.Ids, tokenizers.Offsets]:
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) // 4 + 1, out=offsets[1:])
        return np.zeros(offsets[-1], np.int32), offsets

    def sample_none(_: select.Selector, unsampled: object) -> select.Sampled:  # which is not even read
        return select.Sampled([], np.empty(0, np.int32), np.empty(0, bool))

    fast._read = lambda file: None
    tokenizers.encode_with_fastokens = lambda tokenizer: made_up
    select.Selector.sample = sample_none
    select.Selector._compare = lambda *_: 0
    encode.tokenize(parquet, tokenizer, output / "tokens", Tokenize())


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    rivals = {"trl": trl, "trl-default": partial(trl, processes=None), "batched": batched, "without": without}
    rivals[name](*map(Path, paths))
