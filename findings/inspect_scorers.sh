#!/usr/bin/env bash
# inspect-ai: match() takes "The answer is 17" for 7, exact() takes -5 for 5 and C++ for C, and f1() gives the right answer "A" 0.
#
# Versions: inspect-ai 0.3.285
# Guess:    match() compares the answer at the end of the text, exact() the whole text, and f1() words; an answer equal to its target is right.
# Seen:     match() asks whether the text ends with the target's characters: "17" ends with "7", "not guilty" with "guilty". includes() is the
#           same anywhere: "I do not know" has "no". match(numeric=True) compares numbers, but "x=17", "17%" and "17kg" are no number to it.
#           exact() and f1() take out articles and signs first: -5 is 5, C++ is C, "x>1" is "x<1"; f1 of "A" with itself is 0, since "a" is an
#           article.
# Effect:   a benchmark is too easy for short targets, and letters or signs are scored by chance. Try a scorer on wrong answers before it
#           ranks models, or write the comparison. Talaria compares whole answers and log-likelihoods.
source "$(dirname "$0")/install.sh" inspect-ai==0.3.285
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import asyncio

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, exact, f1, includes, match
from inspect_ai.solver import TaskState


SCORERS = {"match": match(), "match, numeric": match(numeric=True), "includes": includes(), "exact": exact(), "f1": f1()}


def score(name, answer, target):
    """What the scorer says of a model's answer: C for correct, I for incorrect, or a number."""
    output = ModelOutput.from_content("model", answer)
    state = TaskState(model="model", sample_id=1, epoch=1, input="?", messages=[], target=Target(target), output=output)
    found = asyncio.run(SCORERS[name](state, Target(target))).value
    print(f"{name}: {answer!r} for the target {target!r}: {found}")
    return found


for answer, target in (("The answer is 17", "7"), ("not guilty", "guilty"), ("piano", "no")):
    assert score("match", answer, target) == "C"
assert score("match, numeric", "The answer is 17", "7") == "I"
for answer in ("x=17", "17%", "17kg"):
    assert score("match, numeric", answer, "17") == "I"
assert score("includes", "I do not know", "no") == "C"
for answer, target in (("-5", "5"), ("C++", "C"), ("x>1", "x<1")):
    assert score("exact", answer, target) == "C"
assert score("f1", "A", "A") == 0.0
assert score("f1", "B", "B") == 1.0
PY
