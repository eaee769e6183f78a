"""Registering a large model: seconds, seconds of hashing, and bytes of disk, for a training folder with one model of given size.

python benchmarks/register.py [--gigabytes 1] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from talaria.registry import kept_models
from talaria.registry.register import register
from talaria.store.store import Store
from talaria.tracking.mlflow_client import connect, tracking_uri

from tests.support import tiny_pipeline


def used(folder: Path) -> int:
    """Bytes of disk below a folder; a file with several names counts once."""
    stats = {(s.st_dev, s.st_ino): s.st_blocks * 512 for path in folder.rglob("*") if (s := path.stat())}
    return sum(stats.values())


def training_folder(folder: Path, base: Path, size: int) -> dict[str, int]:
    shutil.copytree(base, folder / "model")
    with (folder / "model" / "model.safetensors").open("wb") as file:
        block = os.urandom(1 << 24)
        for _ in range(size // len(block)):
            file.write(block)
    (folder / "status.json").write_text(json.dumps({"state": "done", "step": 1, "time": time.time()}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "time": time.time()}) + "\n")
    return {"steps": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="talaria-register-", dir=args.folder))
    try:
        config, store = tiny_pipeline.config(), Store(root)
        outputs = tiny_pipeline.prepare(store, config)
        inputs = {name: outputs[name] for name in ("tokenize", "base")}
        size = int(args.gigabytes * 1e9)
        fill = lambda folder: training_folder(folder, outputs["base"].path, size)  # noqa: E731
        outputs["train"] = tiny_pipeline.put(store, "train", fill, inputs)
        evaluation = root / "evaluation"
        evaluation.mkdir()
        (evaluation / "report.json").write_text(json.dumps({"heldout": None, "exports": []}))
        folders = {name: output.path for name, output in outputs.items()} | {"evaluate": evaluation}
        connect(tracking_uri(root))  # the tables are made, and the libraries loaded, once
        start = time.perf_counter()
        kept_models.hashes(folders["train"] / "model")
        hashing = time.perf_counter() - start
        before = used(root)
        start = time.perf_counter()
        register(config, folders, uri=tracking_uri(root))
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        again = register(config, folders, uri=tracking_uri(root))
        result = {
            "gigabytes": args.gigabytes,
            "seconds": round(seconds, 2),
            "of_which_hashing": round(hashing, 2),
            "again_seconds": round(time.perf_counter() - start, 2),
            "again_reused": again["reused"],
            "more_disk_bytes": used(root) - before,
        }
        print(json.dumps(result))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
