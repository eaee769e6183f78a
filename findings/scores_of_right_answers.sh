#!/usr/bin/env bash
# rouge-score and sacrebleu: a perfect answer scores 0.
#
# Versions: rouge-score 0.1.2, sacrebleu 2.6.0
# Guess:    an answer that is equal to its reference has the best score there is, and another one has not.
# Seen:     rouge-score keeps a-z and 0-9 alone: a Russian, Greek or Japanese answer scores 0 against itself, and "größe" scores 1.0 against
#           "gr e". sacrebleu's corpus_bleu gives 0 to answers of fewer than four words, "Paris" for "Paris", where sentence_bleu gives 100.
# Effect:   ROUGE and BLEU in a gate measure the language or the length of the answers, not the model. Tasks of lm_eval compute them with
#           these packages. Use chrF, or exact match for short answers.
source "$(dirname "$0")/install.sh" rouge-score==0.1.2 sacrebleu==2.6.0
py - <<'PY'
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

rouge = RougeScorer(["rougeL"])


def scores(answer, reference):
    found = (
        rouge.score(reference, answer)["rougeL"].fmeasure,
        round(sacrebleu.corpus_bleu([answer], [[reference]]).score),
        round(sacrebleu.sentence_bleu(answer, [reference]).score),
        round(sacrebleu.corpus_chrf([answer], [[reference]]).score),
    )
    print(f"{answer!r} for {reference!r}: rougeL {found[0]:g}, corpus_bleu {found[1]}, sentence_bleu {found[2]}, chrF {found[3]}")
    return found


assert scores("it is Paris today", "it is Paris today") == (1, 100, 100, 100)
assert scores("Paris", "Paris") == (1, 0, 100, 100)
assert scores("столица Франции это Париж", "столица Франции это Париж") == (0, 100, 100, 100)
assert scores("首都はパリです", "首都はパリです")[0] == 0
assert scores("größe", "gr e")[0] == 1
PY
