#!/usr/bin/env bash
# huggingface_hub: a numpy number or a Path in ModelCardData writes Python object tags into the card's YAML.
#
# Versions: huggingface-hub 2.4.0, numpy 2.4.6
# Guess:    the number is written as a number, or refused when the card is made.
# Seen:     to_yaml() writes `!!python/object/apply:numpy._core.multiarray.scalar` with the bytes in base64, and a base_model given as a
#           Path becomes `!!python/object/apply:pathlib.PosixPath`. A safe YAML reader, the library's own included, refuses the block.
# Effect:   metrics that come from numpy or torch must go through float() before they are published.
source "$(dirname "$0")/install.sh" huggingface-hub==2.4.0 numpy==2.4.6 pyyaml
py - <<'PY'
from pathlib import Path
import numpy as np, yaml
from huggingface_hub import EvalResult, ModelCardData

def card(value, base):
    result = EvalResult(task_type="text-generation", dataset_type="x", dataset_name="x", metric_type="loss", metric_value=value)
    return ModelCardData(model_name="m", base_model=base, eval_results=[result]).to_yaml()

good = card(float(np.float64(0.5)), "some/base")
assert yaml.safe_load(good)["base_model"] == "some/base"
bad = card(np.float64(0.5), Path("folder"))
print(bad)
assert "!!python/object/apply:numpy" in bad and "!!python/object/apply:pathlib" in bad
try:
    yaml.safe_load(bad)
except yaml.constructor.ConstructorError as error:
    print("safe_load:", str(error).splitlines()[0])
else:
    raise SystemExit("the card can be read now")
PY
