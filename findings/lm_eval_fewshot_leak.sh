#!/usr/bin/env bash
# lm-evaluation-harness: with --num_fewshot a task with a test split alone shows the model the question with its answer.
#
# Versions: lm_eval 0.4.13, datasets 5.2.0
# Guess:    few-shot examples that come from the test split are other rows than the one that is asked, as with fewshot_split: test.
# Seen:     the asked row is taken out only if the names `fewshot_split` and `test_split` are equal. Where a task names no fewshot_split and has no
#           other split the examples are drawn from the test split with the asked row in it: of 20 questions with 5 examples 8 prompts hold their
#           own question and answer. Naming it mends this, and breaks a task whose rows are its validation split. With --num_fewshot nothing is said.
# Effect:   a benchmark of one's own gets better with each example, for a base model most of all. Use test_split, and name fewshot_split. Talaria
#           makes the two names equal before it asks.
source "$(dirname "$0")/install.sh" lm_eval==0.4.13 datasets==5.2.0
mkdir tasks
cat > run.py <<'PY'
import json
import re

import lm_eval
import lm_eval.tasks
from lm_eval.api.model import LM

with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"question": f"{number}+{number}", "answer": str(2 * number)}) + "\n" for number in range(20))
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
{splits}
output_type: generate_until
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [";"]}}
"""


class Copying(LM):
    """A model that answers what the prompt itself says."""

    def generate_until(self, requests, **_):
        answers = []
        for request in requests:
            *examples, question = request.args[0].split("Q: ")
            told = re.search(rf"^{re.escape(question)} (\d+)", "\n".join(examples), re.MULTILINE)
            answers.append(told[1] if told else "?")
        return answers

    def loglikelihood(self, requests, **_):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def score(name, splits):
    with open(f"tasks/{name}.yaml", "w") as file:
        file.write(TASK.format(name=name, splits=splits))
    manager = lm_eval.tasks.TaskManager(include_path="tasks", include_defaults=False)
    found = lm_eval.simple_evaluate(model=Copying(), tasks=[name], task_manager=manager, num_fewshot=5, bootstrap_iters=0)
    right = float(found["results"][name]["exact_match,none"])
    print(f"{splits!r}: right answers of a model that only copies: {right:.0%}")
    return right


assert score("test", "test_split: test") > 0.1
assert score("test_named", "test_split: test\nfewshot_split: test") == 0.0
assert score("validation", "validation_split: test") == 0.0
assert score("validation_named", "validation_split: test\nfewshot_split: test") > 0.1
PY
HF_HUB_OFFLINE=1 py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
echo "said about few-shot examples: $(grep -i -c 'preconfigured rule' log.txt || true) lines"
