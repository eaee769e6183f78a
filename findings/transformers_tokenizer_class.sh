#!/usr/bin/env bash
# transformers: "tokenizer_class": "Qwen2Tokenizer" replaces the pre-tokenizer of tokenizer.json, so the ids differ from the file's.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3
# Guess:    tokenizer.json decides how text is split; tokenizer_class only names a Python class.
# Seen:     a tokenizer.json that splits digits into groups of three gives 650|841|823. Beside "tokenizer_class": "Qwen2Tokenizer",
#           AutoTokenizer splits 6|5|0|8|4|1|8|2|3 and says nothing. With LlamaTokenizer it notices that the file is byte-level, warns
#           and keeps the file's rules; without a class, with a class that does not exist, and with PreTrainedTokenizerFast it keeps them.
# Effect:   many folders name Qwen2Tokenizer for another vocabulary. What tokenizers (or an engine that reads tokenizer.json) encodes
#           in training is not what transformers encodes when it serves. Encode a sample both ways before training.
source "$(dirname "$0")/install.sh" transformers==5.23.0 tokenizers==0.23.3
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import json, pathlib
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

plain = Tokenizer(models.BPE())
digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated")
plain.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
plain.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
plain.train_from_iterator(["650 841 823 hello 650841823"] * 5, trainer)
text = "650841823 hello"

def loaded(name):
    folder = pathlib.Path(str(name))
    folder.mkdir()
    plain.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>"} | ({"tokenizer_class": name} if name else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(f"{name}: {type(tokenizer).__name__} {tokenizer.tokenize(text)}")
    return tokenizer.encode(text, add_special_tokens=False)

ids = plain.encode(text).ids
for name in (None, "PreTrainedTokenizerFast", "LlamaTokenizer", "NoSuchTokenizer"):
    assert loaded(name) == ids, name
assert loaded("Qwen2Tokenizer") != ids
PY
