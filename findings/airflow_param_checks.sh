#!/usr/bin/env bash
# Airflow: a Param of type integer may be 1.0 or 1e20, a pattern's end may have a line break behind it, and 0.3 is no multiple of 0.1.
#
# Versions: apache-airflow 3.3.2, jsonschema 4.26.0
# Guess:    a value that passed type="integer" is an int; one that passed pattern="^v[0-9]+$" is such a text alone.
# Seen:     JSON Schema counts 1.0 and 1e20 as integers, and the value stays a float: range(params.epochs) fails in the task, a template
#           writes "1.0". "$" is Python's, which "v1" with a line break passes. multipleOf 0.1 and 0.01 refuse 0.3 and 19.99, because the
#           division leaves a rest in binary.
# Effect:   a run is accepted by the form and the API, and fails later, or writes to a folder whose name ends in a line break. End a pattern
#           with $(?!\n), which browsers know too, convert numbers in the task, and give choices (enum) instead of multipleOf.
source "$(dirname "$0")/install.sh" apache-airflow==3.3.2 jsonschema==4.26.0
export AIRFLOW_HOME="$work/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from airflow.sdk import Param


def checked(value, **schema):
    """The value that a task gets, or None where the check refuses it."""
    try:
        return Param(value, **schema).resolve()
    except Exception as error:
        print(f"{schema}: {value!r} is refused: {str(error).splitlines()[0]}")
        return None


for value, schema in (
    (1.0, {"type": "integer"}),
    (1e20, {"type": "integer"}),
    ("v1\n", {"type": "string", "pattern": "^v[0-9]+$"}),
):
    found = checked(value, **schema)
    print(f"{schema}: {value!r} is passed on as {found!r}")
    assert found == value and type(found) is type(value)
assert checked(1.5, type="integer") is None
assert checked("v1\n", type="string", pattern=r"^v[0-9]+$(?!\n)") is None
assert checked("v1", type="string", pattern=r"^v[0-9]+$(?!\n)") == "v1"
for value, step in ((0.3, 0.1), (19.99, 0.01)):
    assert checked(value, type="number", multipleOf=step) is None
PY
