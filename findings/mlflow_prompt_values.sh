#!/usr/bin/env bash
# MLflow: text that is put into a prompt is itself filled in, so an answer about templates reaches the judge as another answer.
#
# Versions: mlflow 3.17.2
# Guess:    format() of a registered prompt fills the template's marks once; a value is text, whatever it says, as with str.format and Jinja.
# Seen:     the values are put in one after the other, and each looks for its mark in what is there by then. An answer that says "{{ question }}"
#           (Jinja, Vue, Handlebars, a prompt) has the question in that place, if the question is given after the answer, and not if before.
# Effect:   code that is right is judged as code with a paragraph in it, and two calls with the same values differ by their order. Check values for
#           "{{", or format the prompt with Jinja. Talaria's templates are rendered once.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import mlflow

mlflow.set_tracking_uri("sqlite:///mlflow.db")
prompt = mlflow.genai.register_prompt(name="judge", template="Question: {{question}} Answer: {{answer}} Is it right?")
values = {"question": "How do I print a variable in Jinja?", "answer": "Write {{ question }}."}
asked_first = prompt.format(**values)
asked_last = prompt.format(**dict(reversed(values.items())))
print("question before answer:", asked_first)
print("answer before question:", asked_last)
assert asked_first == "Question: How do I print a variable in Jinja? Answer: Write {{ question }}. Is it right?"
assert asked_last == "Question: How do I print a variable in Jinja? Answer: Write How do I print a variable in Jinja?. Is it right?"
PY
