#!/usr/bin/env bash
# TRL: completion_only_loss=True does nothing for messages, and a completion beside a text is trained without its end.
#
# Versions: trl 1.16.0, transformers 5.23.0, datasets 5.2.0, torch 2.13.0 (CPU)
# Guess:    completion_only_loss=True computes the loss on completions alone, or says that the rows have none, as assistant_only_loss=True
#           says that rows are not conversational; prompt and completion are trained alike, whatever other columns a row has.
# Seen:     rows of messages are trained whole, questions and system prompt too, without a word. Of rows with prompt, completion and
#           text the first two are trained, but the end token is appended to the text, which is not.
# Effect:   the first learns to ask, the second never to stop. Set assistant_only_loss for messages, and remove columns that are not used.
#           Talaria supervises answers and their end in each form.
source "$(dirname "$0")/install.sh" trl==1.16.0 transformers==5.23.0 datasets==5.2.0 torch==2.13.0
py - 2>log.txt <<'PY' | grep . || { tail -5 log.txt; exit 1; }
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

disable_progress_bars()
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>{% endgeneration %}"
    "{% else %}{{ m.content }} {% endif %}{% endfor %}"
)
size = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)


def trained(row, **how):
    """The text that the trainer computes a loss on."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    config = SFTConfig(output_dir="out", report_to=[], use_cpu=True, bf16=False, **how)
    model = Qwen3ForCausalLM(Qwen3Config(**size))
    trainer = SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    labels = batch["labels"][0]
    return tokenizer.decode(labels[labels != -100])


messages = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
pair = {"prompt": "Q: Hi A:", "completion": " Hello"}
for name, row, how, text in (
    ("messages, completion_only_loss", messages, {"completion_only_loss": True}, "[user] Hi [assistant] Hello<end>"),
    ("messages, assistant_only_loss", messages, {"assistant_only_loss": True}, "Hello<end>"),
    ("prompt and completion", pair, {}, " Hello<end>"),
    ("prompt, completion and text", pair | {"text": "Hi! Hello."}, {}, " Hello"),
):
    print(f"{name}: {trained(row, **how)!r}")
    assert trained(row, **how) == text
try:
    trained(pair, assistant_only_loss=True)
except ValueError as error:
    print("prompt and completion, assistant_only_loss:", error)
else:
    raise SystemExit("assistant_only_loss accepts rows that are not conversational now")
PY
