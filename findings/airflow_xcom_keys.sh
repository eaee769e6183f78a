#!/usr/bin/env bash
# Airflow: keys of a dict that a task returns become text, though its values keep their types.
#
# Versions: apache-airflow 3.3.2, numpy 2.3.5
# Guess:    XCom gives the next task what this one returned, or refuses it: tuples, sets, dates, numpy numbers and nan all come back as they are.
# Seen:     keys do not: {900: 2.1, 1000: 1.7} arrives as {"900": 2.1, "1000": 1.7}, a key (1, 2) as "(1, 2)", None as "None" and True as
#           "True"; {1: "a", "1": "b"} has one entry. Decimal("1.10") comes back as Decimal("1.1"). No message.
# Effect:   max() of the losses by step is "900", since text is compared; results["1000"] works and results[1000] does not, while in a test
#           that calls the functions it is the other way round. Return lists of pairs.
source "$(dirname "$0")/install.sh" apache-airflow==3.3.2 numpy==2.3.5
export AIRFLOW_HOME="$work/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import datetime, json
import numpy as np
from airflow.sdk.serde import deserialize, serialize


def passed(value):
    """What the next task gets: serialize and deserialize are XCom's, JSON is what its API carries."""
    return deserialize(json.loads(json.dumps(serialize(value))))


for value in ((1, 2), {1, 2}, np.float32(0.1), np.int64(5), datetime.date(2026, 1, 1), 2**70):
    assert passed(value) == value and type(passed(value)) is type(value), value
for value, expected in (
    ({900: 2.1, 1000: 1.7}, {"900": 2.1, "1000": 1.7}),
    ({(1, 2): "pair", None: "none", True: "yes"}, {"(1, 2)": "pair", "None": "none", "True": "yes"}),
    ({1: "a", "1": "b"}, {"1": "b"}),
):
    print(value, "arrives as", passed(value))
    assert passed(value) == expected
losses = {900: 2.1, 1000: 1.7}
print("the last step:", max(losses), "and in the next task", repr(max(passed(losses))))
assert max(losses) == 1000 and max(passed(losses)) == "900"
assert passed([(900, 2.1), (1000, 1.7)]) == list(losses.items())
PY
