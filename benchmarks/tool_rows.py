"""Rows with tools by the tokenizer's own template: `talaria tokenize`, start to exit, beside apply_chat_template row by row.

    python benchmarks/tool_rows.py --tokenizer QWEN3_FOLDER --rows 100000 [--plain 5000] [--work /dev/shm]

The plain loop has its rows and its tokenizer before its time begins; its rate on --plain rows is what ours is compared with. Wall
seconds count on a quiet machine only; the load is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from reference_convert import ROOT, timed

sys.path.insert(0, str(ROOT))
from talaria.common.torch_free import hide_torch

from tests.support.tool_conversations import tool_rows, write_rows


def plain_rate(tokenizer: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rows a second, by the clock and by processor seconds."""
    hide_torch()
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(tokenizer)
    clock, work = time.monotonic(), time.process_time()
    for row in rows:
        messages = [{"content": "", **message} for message in row["messages"]]
        opened.apply_chat_template(messages, tools=row["tools"] or None, return_dict=False)
    return {"seconds": len(rows) / (time.monotonic() - clock), "cpu_seconds": len(rows) / (time.process_time() - work)}


def write(parquet: Path, count: int) -> None:
    write_rows(parquet, tool_rows(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer has a template with tools")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--plain", type=int, default=5_000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder in memory, for quiet figures")
    args = parser.parse_args()
    talaria = str(Path(sys.executable).parent / "talaria")
    plain = plain_rate(args.tokenizer, tool_rows(args.plain))
    rates = json.dumps({name: round(rate) for name, rate in plain.items()})
    print(f"load {os.getloadavg()[0]:.1f}; rows of apply_chat_template by each: {rates}")
    for count in args.rows:
        with tempfile.TemporaryDirectory(prefix="tool-rows-", dir=args.work) as folder:
            parquet = Path(folder) / "messages.parquet"
            # A child's peak memory begins at what its parent holds, which must not be these rows.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
                other.submit(write, parquet, count).result()
            command = [talaria, "tokenize", "--input", str(parquet), "--tokenizer", str(args.tokenizer.resolve())]
            run = timed([*command, "--output", f"{folder}/tokens", "--set", "tokenize.template=own"])
        ratios = {f"x {name}": round(count / run[name] / plain[name], 2) for name in plain}
        print(f"load {os.getloadavg()[0]:.1f}; {count:,} rows: {json.dumps(run | ratios)}", flush=True)


if __name__ == "__main__":
    main()
