#!/usr/bin/env bash
# transformers: one call with truncation, and the saved tokenizer cuts every text of other programs.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3
# Guess:    truncation=True, max_length=4 concerns the call that it is passed to.
# Seen:     it stays in the tokenizer, and save_pretrained writes it to tokenizer.json, with the padding. tokenizers.Tokenizer.from_file, and
#           so any engine that reads this file by the Rust library, cuts each text to 4 tokens. transformers itself does not: it sets both anew
#           at each call, so that nothing is seen in Python.
# Effect:   the last batch of an evaluation decides how long the prompts of a server are. Talaria writes tokenizer.json without either.
source "$(dirname "$0")/install.sh" transformers==5.23.0 tokenizers==0.23.3
py - <<'PY'
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
trainer = trainers.BpeTrainer(special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator([], trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def read(folder):
    """What tokenizers and transformers make of a text with the saved folder."""
    fast.save_pretrained(folder)
    saved = json.load(open(f"{folder}/tokenizer.json"))
    rust = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokens = len(rust.encode("another long text").ids), len(AutoTokenizer.from_pretrained(folder)("another long text")["input_ids"])
    print(f"{folder}: truncation {saved['truncation']}, padding {bool(saved['padding'])}; tokenizers {tokens[0]}, transformers {tokens[1]} tokens")
    return tokens


assert read("before") == (17, 17)
fast(["a long text", "hi"], truncation=True, max_length=4, padding="max_length")
assert read("after") == (4, 17)
PY
