#!/usr/bin/env bash
# tokenizers: a byte-level BPE trained with the defaults drops every character that the corpus did not have, without a word.
#
# Versions: tokenizers 0.23.3
# Guess:    byte-level means that any text can be encoded and decoded, whatever the corpus was, as with GPT-2's tokenizer.
# Seen:     the vocabulary has only the bytes that occurred. Of "price: 12 EUR, a book" a tokenizer that saw small letters alone keeps these and
#           the spaces; the rest gives no id, no unknown token and no error, and decode returns a shorter text. With an unk_token of the model the
#           loss can be seen. With initial_alphabet=ByteLevel.alphabet() nothing is lost.
# Effect:   digits, capitals or other scripts disappear from questions and answers, and the loss looks good. Pass the alphabet, and check that
#           decode(encode(x)) is x on the data.
source "$(dirname "$0")/install.sh" tokenizers==0.23.3
py - <<'PY'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = ["the price of a good book is never too high", "a good reader has no price"] * 50
TEXT = "price: 12 EUR, a book"


def trained(unk_token=None, **settings):
    """A byte-level BPE as in the library's own examples."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False, **settings))
    return tokenizer


def around(tokenizer):
    ids = tokenizer.encode(TEXT).ids
    print(f"{tokenizer.get_vocab_size()} tokens: {TEXT!r} -> {tokenizer.encode(TEXT).tokens} -> {tokenizer.decode(ids)!r}")
    return tokenizer.decode(ids)


assert around(trained()) == "price   a book"
assert around(trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())) == TEXT
around(trained("<unk>", special_tokens=["<unk>"]))
assert trained("<unk>", special_tokens=["<unk>"]).encode(TEXT).tokens.count("<unk>") > 0
PY
