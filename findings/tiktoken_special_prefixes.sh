#!/usr/bin/env bash
# tiktoken: of two special tokens of which one begins the other, chance decides which is found; text that the pattern misses is dropped.
#
# Versions: tiktoken 0.14.0, tokenizers 0.23.3
# Guess:    the longest special token wins, as in tokenizers; or the one that was given first. Every byte of a text is in some token.
# Seen:     the alternatives are in the order of a hash table: of "<|end|>" and "<|end|>x" the longer is found, or never, depending on the ids
#           and on the order in which both are given; of "<a>" and "<a><b>" the shorter. What pat_str does not match gives no token: with
#           "[a-z]+" the text "ab 12 cd" is encoded as "abcd", without a word.
# Effect:   a vocabulary that adds longer special tokens, or a pattern that was rewritten for another tokenizer, loses tokens and text only in some
#           versions. Encode and decode a sample with each special token in it. tokenizers finds the longest, and keeps what is left.
source "$(dirname "$0")/install.sh" tiktoken==0.14.0 tokenizers==0.23.3
py - <<'PY' | grep .
import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = {bytes([byte]): byte for byte in range(256)}


def found(special, text):
    """Whether the text, which is one of the special tokens, is encoded as this token; by tiktoken and by tokenizers."""
    numbered = {token: 256 + place for place, token in enumerate(special)}
    ours = tiktoken.Encoding("x", pat_str=r"\S+|\s+", mergeable_ranks=BYTES, special_tokens=numbered).encode(text, allowed_special="all")
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    other.add_special_tokens([AddedToken(token) for token in special])
    assert other.encode(text).tokens == [text]
    return ours == [numbered[text]]


seen = {}
for special in (["<|end|>", "<|end|>x"], ["<|end|>x", "<|end|>"], ["<a>", "<a><b>"]):
    longest = max(special, key=len)
    seen[tuple(special)] = found(special, longest)
    print(f"special tokens {special}: {longest!r} is {'' if seen[tuple(special)] else 'not '}found")
assert list(seen.values()) == [True, False, False]
letters = tiktoken.Encoding("x", pat_str="[a-z]+", mergeable_ranks=BYTES, special_tokens={})
text = "ab 12 cd"
print(f"pattern [a-z]+: {text!r} comes back as {letters.decode(letters.encode(text))!r}")
assert letters.decode(letters.encode(text)) == "abcd"
PY
