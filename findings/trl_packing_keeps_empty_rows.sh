#!/usr/bin/env bash
# TRL: with packing, conversations without a supervised token stay in the data, and steps of loss 0 are trained.
#
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    a conversation that max_length cuts before its answer is dropped, with or without packing.
# Seen:     without packing such rows are dropped ("Dropping fully masked examples"), and if none is left the trainer raises an error. With
#           packing=True this step does not run: all 8 rows stay, no label counts, and training runs with loss 0 and gradient norm 0.
# Effect:   a max_length that is too small for the prompts shows only as a loss that is too low. Count supervised tokens per step.
#           Talaria drops such conversations at tokenisation and counts them (`prompt_too_long`, `no_supervised_tokens`).
source "$(dirname "$0")/install.sh" trl==1.16.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0 torch==2.13.0
py - <<'PY'
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

disable_progress_bars()
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(["hi"], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet))

def trained(packing):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    turns = [{"role": "user", "content": "hi " * 30}, {"role": "assistant", "content": "hello"}]
    config = SFTConfig(
        "out", use_cpu=True, report_to="none", max_steps=2, per_device_train_batch_size=1, logging_steps=1, save_strategy="no",
        disable_tqdm=True, assistant_only_loss=True, max_length=40, packing=packing,
    )
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, **size))
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list([{"messages": turns}] * 8), processing_class=fast)
    rows = len(trainer.train_dataset)
    try:
        trainer.train()
    except ValueError as error:
        return rows, str(error)
    return rows, [(step["loss"], step["grad_norm"]) for step in trainer.state.log_history if "loss" in step]

without, packed = trained(False), trained(True)
print("packing off:", without)
print("packing on:", packed)
assert without[0] == 0 and "num_samples=0" in without[1]
assert packed == (8, [(0.0, 0.0), (0.0, 0.0)])
PY
