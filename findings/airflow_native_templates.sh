#!/usr/bin/env bash
# Airflow: with render_template_as_native_obj a text parameter becomes a number, and sometimes another commit.
#
# Versions: apache-airflow 3.3.2
# Guess:    native rendering keeps the type of a parameter: what was text stays text, a list stays a list.
# Seen:     the rendered text is read as a Python literal, whatever it was before: of the parameters of type string "1.10" becomes 1.1,
#           "12345e6" 12345000000.0, "1_000" 1000, "None" None and "'yes'" loses its quotes, while "007" stays text.
# Effect:   one in 19 short commit ids of seven digits (all decimal, or around one e) becomes a number, and a version 1.10 becomes 1.1.
#           "{{ params.revision | string }}" does not help; take such values from context["params"]. Talaria does not set this.
source "$(dirname "$0")/install.sh" apache-airflow==3.3.2
export AIRFLOW_HOME="$work/airflow"
py - 2>/dev/null <<'PY'
import datetime

from airflow.sdk import DAG, Param

TEXTS = ("1234567", "12345e6", "1.10", "1_000", "None", "'yes'", "007", "abc1234")


def rendered(native, template):
    params = {f"p{number}": Param(text, type="string") for number, text in enumerate(TEXTS)}
    dag = DAG("d", schedule=None, start_date=datetime.datetime(2026, 1, 1), params=params, render_template_as_native_obj=native)
    values = dag.params.validate()
    return [dag.get_template_env().from_string(template % name).render(params=values) for name in params]


for template in ("{{ params.%s }}", "{{ params.%s | string }}"):
    plain, native = rendered(False, template), rendered(True, template)
    for text, one, other in zip(TEXTS, plain, native, strict=True):
        print(f"{template % 'text':28} {text!r}: plain {one!r}, native {other!r}")
    assert plain == list(TEXTS)
    assert native == [1234567, 12345e6, 1.1, 1000, None, "yes", "007", "abc1234"]
PY
