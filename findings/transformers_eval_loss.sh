#!/usr/bin/env bash
# transformers: eval_loss of one model and one data set is 0.54 or 0.01, by the batch size.
#
# Versions: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (CPU)
# Guess:    eval_loss is the mean over the tokens of the data set, as the training loss of a step is, whatever the batch size.
# Seen:     within a batch Trainer.evaluate takes the mean over tokens, between batches over rows: a short row alone counts as much as a long
#           one, and beside long ones hardly at all. The value differs for the batch sizes 1, 2, 4 and 16 and with the order of the rows;
#           only one batch that holds all rows gives the mean over tokens.
# Effect:   runs with other batch sizes cannot be compared by eval_loss or by its exp, the perplexity, and the best checkpoint may be
#           another one. Talaria's validation loss is the sum over supervised tokens divided by their number.
source "$(dirname "$0")/install.sh" transformers==5.23.0 accelerate==1.15.0 torch==2.13.0
py - <<'PY'
import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments
from tokenizers import Tokenizer, models

torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16
)
model = Qwen3ForCausalLM(config).eval()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>")
rows = [{"input_ids": [7, 9, 11], "labels": [7, 9, 11]}] + [{"input_ids": [5] * 100, "labels": [5] * 100} for _ in range(8)]


def loss(model, rows):
    """The mean over the tokens that are predicted, and how many these are."""
    with torch.no_grad():
        each = [model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss for row in rows]
    counts = torch.tensor([len(row["labels"]) - 1 for row in rows])
    return float((torch.stack(each) * counts).sum() / counts.sum())


def evaluated(model, rows, batch):
    arguments = TrainingArguments("out", per_device_eval_batch_size=batch, report_to="none", use_cpu=True, disable_tqdm=True, log_level="error")
    trainer = Trainer(model, arguments, eval_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True))
    return trainer.evaluate()["eval_loss"]


for step in range(40):  # a model that knows the eight long rows better than the short one
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0) if step == 0 else optimizer
    model(input_ids=torch.tensor([[5] * 100]), labels=torch.tensor([[5] * 100])).loss.backward()
    optimizer.step(), optimizer.zero_grad()
tokens, known, short = loss(model, rows), loss(model, rows[1:]), loss(model, rows[:1])
print(f"over all tokens {tokens:.4f}; the eight long rows {known:.4f}, the short row {short:.4f}")
seen = {batch: evaluated(model, rows, batch) for batch in (1, 2, 4, 16)}
for batch, value in seen.items():
    print(f"per_device_eval_batch_size={batch}: eval_loss {value:.4f}")
assert abs(seen[16] - tokens) < 1e-4 and abs(seen[1] - (8 * known + short) / 9) < 1e-3
assert seen[1] > 5 * seen[2] and seen[2] > seen[4] > 1.1 * seen[16] > 0.01, seen
PY
