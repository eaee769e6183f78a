#!/usr/bin/env bash
# sentencepiece: a tokenizer trained with the defaults has seen no row above 4 kB, and reads line breaks and indentation as one space.
#
# Versions: sentencepiece 0.2.3
# Guess:    the trainer reads every row; a text that is encoded and decoded comes back, but for characters that are not in the vocabulary.
# Seen:     rows longer than 4,192 bytes are left out of the training (one line of the log counts them): characters that occur in such rows
#           alone are unknown. The normaliser turns runs of white space, line breaks and tabs among it, into one space, so that a Python
#           function is one line after decoding, and U+2581, which stands for the space inside, cannot be told from it. Pieces
#           decoded one by one, as a stream would, have no spaces between words.
# Effect:   chat rows and code are what such a tokenizer is worst at. Pass max_sentence_length, normalization_rule_name="identity",
#           remove_extra_whitespaces=False and byte_fallback=True.
source "$(dirname "$0")/install.sh" sentencepiece==0.2.3
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import io

import sentencepiece

CODE = "def f(x):\n\tif x:\n\t\treturn  1"
short = ["def f(x): if x: return 1", "the cat sat on the mat", "what a function does"] * 20
long = ["Übung macht den Meister. " * 200] * 20


def trained(rows, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(rows), model_writer=model, vocab_size=320, model_type="bpe", hard_vocab_limit=False, minloglevel=2, **options
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


plain = trained(short + long)
for text in ("Übung", CODE, "a\u2581cat"):
    print(f"{text!r} comes back as {plain.decode(plain.encode(text))!r}")
assert plain.decode(plain.encode("Übung")) == " ⁇ un ⁇ "
assert plain.decode(plain.encode(CODE)) == "def f(x): if x: return 1"
assert plain.encode("a\u2581cat") == plain.encode("a cat")
pieces = plain.encode("the cat sat")
print("piece by piece:", "".join(plain.decode([piece]) for piece in pieces), "| together:", plain.decode(pieces))
assert "".join(plain.decode([piece]) for piece in pieces) == "thecatsat"
told = trained(
    short + long, max_sentence_length=10_000, normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True
)
assert told.unk_id() not in told.encode("Übung") and told.decode(told.encode(CODE)) == CODE
print("with the four options:", repr(told.decode(told.encode(CODE))))
PY
