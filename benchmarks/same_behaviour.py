"""Does this checkout do what another one does? Both run one small configuration, and what they wrote is compared byte by byte.

    python benchmarks/same_behaviour.py OLD_CHECKOUT [--keep DIR]

Compared: the store keys of the stages before `train`; every file of their outputs; each step's loss, gradient norm, learning rate
and rows; every tensor file of the checkpoints and of the model. Manifests, logs and times are left out, and so is what the
registry writes. Exits 1 where something differs, and names it. For changes that are meant to change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SETTINGS = {
    "download.rows": 200,
    "base.vocab_size": 400,
    "train.num_processes": 1,
    "train.max_steps": 6,
    "train.save_every": 3,
    "train.eval_every": 3,
    "train.keep_epochs": "false",
    "evaluate.prompts": 4,
    "evaluate.max_new_tokens": 4,
}
BEFORE_TRAIN = ("download", "convert", "base", "tokenize")
STEP = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "supervised_tokens", "rows_checksum")


def run(checkout: Path, store: Path) -> None:
    """Run the configuration with the code of a checkout; the packages were called pipeline and plugins until 2026-11-26."""
    renamed = (checkout / "pipeline" / "talaria").is_dir()
    path = [checkout / "pipeline", checkout / "plugins"] if renamed else [checkout]
    overrides = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    module = "talaria.cli" if renamed else "pipeline.cli"
    command = [sys.executable, "-m", module, "run", str(HERE / "configs" / "tiny.yaml"), *overrides, "--store", str(store)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=store.parent, env=env)


def facts(store: Path) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of everything that must not differ."""
    for stage in BEFORE_TRAIN:
        for output in (store / stage).iterdir():
            yield f"key of {stage}", output.name
            for path in sorted(output.rglob("*")):
                if path.is_file() and path.name != "manifest.json":
                    yield f"{stage}/{path.relative_to(output)}", digest(path)
    for training in (store / "train").iterdir():
        for line in (training / "metrics.jsonl").read_text().splitlines():
            step = json.loads(line)
            yield f"step {step['step']}", {name: step[name] for name in STEP}
        for line in (training / "evals.jsonl").read_text().splitlines():
            evaluation = json.loads(line)
            yield f"held-out loss at step {evaluation['step']}", evaluation["loss"]
        for path in sorted(training.rglob("*.safetensors")):
            yield f"train/{path.relative_to(training)}", digest(path)


def digest(path: Path) -> str:
    """sha256 of a file; of a safetensors file with its header in one order, which the library writes as a hash map gives it."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--keep", type=Path, help="folder for the two stores; absent: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.keep or Path(scratch)).resolve()
        found = []
        for name, checkout in (("old", options.old.resolve()), ("new", HERE)):
            (root / name).mkdir(parents=True)
            run(checkout, root / name / "store")
            found.append(dict(facts(root / name / "store")))
    old, new = found
    differ = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
    for name in sorted(differ):
        print(f"{name}: {old.get(name)} became {new.get(name)}")
    print(f"{len(old) - len(differ)} of {len(old)} facts are equal.")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
