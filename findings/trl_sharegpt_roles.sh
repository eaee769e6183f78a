#!/usr/bin/env bash
# TRL: data in ShareGPT's form is accepted, and trained with the roles "human" and "gpt".
#
# Versions: trl 1.16.0, transformers 5.23.0, datasets 5.2.0, torch 2.13.0 (CPU)
# Guess:    SFTTrainer turns {"from": "human", "value": ...} into {"role": "user", "content": ...}, or refuses the column `conversations`.
# Seen:     it renames the fields and keeps the names of the roles. A ChatML template writes <|im_start|>human and <|im_start|>gpt; one that knows
#           user and assistant alone writes nothing for such turns, and the trainer trains what is left of the row. No message of it.
# Effect:   the model learns to answer after <|im_start|>gpt, while each server sends <|im_start|>assistant. Rename roles yourself;
#           `talaria convert` does, and refuses roles that it does not know.
source "$(dirname "$0")/install.sh" trl==1.16.0 transformers==5.23.0 datasets==5.2.0 torch==2.13.0
py - 2>log.txt <<'PY' | grep . || { tail -5 log.txt; exit 1; }
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

disable_progress_bars()
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
KNOWN = "start {% for m in messages %}{% if m.role == 'user' %}[U] {{ m.content }}{% elif m.role == 'assistant' %}[A] {{ m.content }}{% endif %}{% endfor %}"
size = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
config = SFTConfig(output_dir="out", report_to=[], use_cpu=True, bf16=False)


def trained(template, rows):
    """The text that the trainer computes a loss on."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<pad>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = template
    model = Qwen3ForCausalLM(Qwen3Config(**size))
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    labels = batch["labels"][0]
    return tokenizer.decode(labels[labels != -100])


sharegpt = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
messages = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
for name, template, texts in (
    ("ChatML", CHATML, ("<|im_start|>human\nHi<|im_end|>\n<|im_start|>gpt\nHello<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n")),
    ("a template of its own", KNOWN, ("start ", "start [U] Hi[A] Hello")),
):
    for form, rows, text in zip(("ShareGPT", "messages"), (sharegpt, messages), texts, strict=True):
        print(f"{name}, {form}: {trained(template, rows)!r}")
        assert trained(template, rows) == text
PY
