#!/usr/bin/env bash
# webdataset: five files with a point in their name are one sample.
#
# Versions: webdataset 1.0.2, datasets 5.2.0
# Guess:    a file's extension begins at the last point: qwen2.5-000.json and qwen2.5-001.json are two samples.
# Seen:     the key ends at the first point of the name, so both have the key "qwen2" and the fields "5-000.json" and "5-001.json" of one
#           sample. Nothing warns: a tar file of five conversations has one sample. datasets' loader "webdataset" does the same.
# Effect:   shards of generations named after a model with a version, or after a temperature (t0.7-001.json), shrink to one row that a
#           reader of "json" fields skips. Keep points out of the names.
source "$(dirname "$0")/install.sh" webdataset==1.0.2 datasets==5.2.0
py - <<'PY'
import io
import json
import tarfile

import webdataset
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()


def samples(prefix):
    with tarfile.open(f"{prefix}.tar", "w") as tar:
        for number in range(5):
            content = json.dumps({"answer": number}).encode()
            member = tarfile.TarInfo(f"{prefix}-{number:03}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    own = [sorted(name for name in sample if not name.startswith("__")) for sample in webdataset.WebDataset(f"{prefix}.tar", shardshuffle=False)]
    loaded = load_dataset("webdataset", data_files=f"{prefix}.tar", split="train", cache_dir="cache")
    other = sorted(name for name in loaded.column_names if not name.startswith("__"))
    print(f"{prefix}: webdataset {len(own)} samples with {own[0]}; datasets {len(loaded)} with {other}")
    return own, len(loaded), other


assert samples("qwen") == ([["json"]] * 5, 5, ["json"])
parts = [f"5-{number:03}.json" for number in range(5)]
assert samples("qwen2.5") == ([parts], 1, parts)
PY
