#!/usr/bin/env bash
# Airflow: whatever has "token" in its name is a secret: tokenizers, tokenised data and max_tokens are shown as ***, in all log lines.
#
# Versions: apache-airflow 3.3.2
# Guess:    names such as HF_TOKEN, api_token or token are secrets; "tokenizer" and "tokenize" are other words.
# Seen:     a name that contains "token" anywhere is masked with all that is under it: among an operator's rendered fields the settings
#           under "tokenize", the path "tokens" and the name "tokenizer" read ***, while numbers are shown. The value of a Variable called
#           max_tokens or tokenizer becomes a secret when a task reads it, and from then on each log line of the task loses these characters:
#           "step 16384 of 20000" is "step *** of 20000". Values shorter than five characters are shown, with a warning.
# Effect:   the page "Rendered Templates" hides what a training read, and logs lose numbers that happen to be equal. The setting
#           hide_sensitive_var_conn_fields turns all of it off; none takes out one word. Name Variables otherwise (context_length).
source "$(dirname "$0")/install.sh" apache-airflow==3.3.2
export AIRFLOW_HOME="$work/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW_VAR_MAX_TOKENS=16384 AIRFLOW_VAR_TOKENIZER=qwen3 AIRFLOW_VAR_CONTEXT_LENGTH=40960
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from airflow.sdk import BaseOperator, Variable
from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields
from airflow.sdk.log import redact


class Train(BaseOperator):
    template_fields = ("config", "inputs", "tokenizer")

    def __init__(self, config, inputs, tokenizer, **kwargs):
        super().__init__(**kwargs)
        self.config, self.inputs, self.tokenizer = config, inputs, tokenizer


settings = {"tokenize": {"template": "chatml", "max_tokens": 2048}, "train": {"precision": "bf16"}}
task = Train(task_id="train", config=settings, inputs={"tokens": "/data/tokens/1", "model": "/data/base"}, tokenizer="Qwen/Qwen3-4B")
shown = _serialize_rendered_fields(task)  # what the worker sends for the page "Rendered Templates"
print(shown)
assert shown == {
    "config": {"tokenize": {"template": "***", "max_tokens": 2048}, "train": {"precision": "bf16"}},
    "inputs": {"tokens": "***", "model": "/data/base"},
    "tokenizer": "***",
}
line = "step 16384 of 20000, model qwen3, context 40960"
assert redact(line) == line
assert [Variable.get(name) for name in ("max_tokens", "tokenizer", "context_length")] == ["16384", "qwen3", "40960"]
print("after Variable.get:", redact(line))
assert redact(line) == "step *** of 20000, model ***, context 40960"
PY
