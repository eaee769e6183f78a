#!/usr/bin/env bash
# tokenizers: a Unigram or WordPiece tokenizer trained twice on the same rows is two tokenizers.
#
# Versions: tokenizers 0.23.3
# Guess:    training has no randomness and no seed: the same corpus and settings give the same tokenizer.json, as BpeTrainer and WordLevelTrainer do.
# Seen:     in each new process WordPieceTrainer gives another vocabulary, so that a text has other ids and another number of tokens, and
#           UnigramTrainer other scores in the last digits, so that a text that can be cut in two equal ways has other ids. BPE and WordLevel are the
#           same each time. One thread (TOKENIZERS_PARALLELISM=false, RAYON_NUM_THREADS=1) changes nothing.
# Effect:   tokenised data of a run that was repeated "from the beginning" does not fit the model of the first, and the ids are all valid. Keep
#           tokenizer.json with the data, and compare its digest, as Talaria does; train once.
source "$(dirname "$0")/install.sh" tokenizers==0.23.3
export RAYON_NUM_THREADS=1
cat > train.py <<'PY'
import hashlib
import random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

rng = random.Random(0)
words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(400)]
corpus = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
same = {"vocab_size": 300, "special_tokens": ["[UNK]"], "show_progress": False}
for name, model, trainer in (
    ("BPE", models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(**same)),
    ("WordLevel", models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer(**same)),
    ("Unigram", models.Unigram(), trainers.UnigramTrainer(unk_token="[UNK]", **same)),
    ("WordPiece", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(**same)),
):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=name != "Unigram")
    tokenizer.train_from_iterator(corpus, trainer)
    ids = [tokenizer.encode(row).ids for row in corpus]
    parts = (tokenizer.to_str(), sorted(tokenizer.get_vocab()), ids)
    print(name, *(hashlib.sha256(repr(part).encode()).hexdigest()[:8] for part in parts), sum(map(len, ids)))
PY
for _ in 1 2 3 4; do py train.py >> seen.txt; done
echo "model; tokenizer.json, its tokens, and the corpus' ids; their number: in four processes"
sort seen.txt
different() { grep "^$1 " seen.txt | cut -d' ' -f"$2" | sort -u | wc -l; }
[ "$(different BPE 2)" = 1 ] && [ "$(different WordLevel 2)" = 1 ]
[ "$(different Unigram 2)" -gt 1 ] && [ "$(different WordPiece 3)" -gt 1 ] && [ "$(different WordPiece 4)" -gt 1 ]
