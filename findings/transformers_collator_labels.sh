#!/usr/bin/env bash
# transformers: the Trainer's default collator cuts scores to whole numbers if the first is whole; the collator for language models undoes a mask.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    a collator stacks and pads what the rows have: labels of 1, 0.5 and 0.7 are these numbers, and labels with -100 stay as they are.
# Seen:     default_data_collator takes the type of labels from the first row of each batch: 1, 0.5, 0.7 are 1, 0, 0, and 0.5, 1, 0.7 are right.
#           A field that is None in the first row is left out of the batch. DataCollatorForLanguageModeling(mlm=False) writes labels anew from the
#           input ids, so that a masked prompt is trained. Nothing is said.
# Effect:   a reward or regression model is trained on rounded scores in some of its batches, by their order; answers-only training trains questions.
#           Use DataCollatorForSeq2Seq for given labels, and floats throughout. Talaria packs ids and masks itself.
source "$(dirname "$0")/install.sh" transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from tokenizers import Tokenizer, models
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, default_data_collator

tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "b": 2}, unk_token="a"))
processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
assert Trainer(torch.nn.Linear(1, 1)).data_collator is default_data_collator


def batch(*labels):
    found = default_data_collator([{"input_ids": [1, 2], "label": label} for label in labels])["labels"].tolist()
    print(f"labels {labels}: {[round(value, 3) for value in found]}")
    return found


assert batch(1, 0.5, 0.7) == [1, 0, 0]
assert torch.allclose(torch.tensor(batch(0.5, 1, 0.7)), torch.tensor([0.5, 1.0, 0.7]))
spans = default_data_collator([{"label_ids": [1, 1]}, {"label_ids": [0.5, 0.7]}])["labels"].tolist()
print("label_ids [1, 1] and [0.5, 0.7]:", spans)
assert spans == [[1, 1], [0, 0]]
missing = default_data_collator([{"label": 1, "weight": None}, {"label": 1, "weight": 0.5}])
print("a weight that is None in the first row:", list(missing))
assert list(missing) == ["labels"]
rows = [{"input_ids": [1, 2, 2], "labels": [-100, -100, 2]}, {"input_ids": [1, 2, 1], "labels": [-100, -100, 1]}]
for collator, expected in (
    (DataCollatorForLanguageModeling(processor, mlm=False), [[1, 2, 2], [1, 2, 1]]),
    (DataCollatorForSeq2Seq(processor), [[-100, -100, 2], [-100, -100, 1]]),
):
    labels = collator([dict(row) for row in rows])["labels"].tolist()
    print(f"{type(collator).__name__}: {labels}")
    assert labels == expected
PY
