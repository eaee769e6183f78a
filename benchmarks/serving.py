"""Tokens a second that many clients get: `talaria serve` beside `mlflow models serve`, one after the other on one machine.

    python benchmarks/serving.py [--clients 50] [--tokens 32] [--model FOLDER]

Without a model, one of SmolLM2-135M's shape and random weights, which never end an answer: each has its full length. Every client
sends one request at the same moment; the tokens of all answers are divided by the seconds until the last one came. Both servers
have answered once before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from talaria.registry import mlflow_model
from talaria.store.store import Store

from benchmarks.train import machine
from tests.support import tiny_pipeline
from tests.support.server_process import ServerProcess

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
WORDS = "Tell me about the colours of the sea in the morning, and say why they change during the day."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="of talaria serve; MLflow's server gets one")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="talaria-serving-"))
    try:
        folder = args.model or random_model(work)
        served = work / "served"
        mlflow_model.fill(served, folder, card="", run_id="0" * 32, model_id="m-" + "0" * 32)
        ours, theirs = measured(work, args, *talaria(served)), measured(work, args, *mlflow(served))
        print(f"ratio {statistics.median(ours) / statistics.median(theirs):.1f}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def random_model(work: Path) -> Path:
    config = tiny_pipeline.config(base={"shape": SHAPE, "vocab_size": 4096})
    return tiny_pipeline.prepare(Store(work / "store"), config)["base"].path


def talaria(folder: Path) -> tuple[str, list[str], str, Callable[[str, int], tuple[str, Any]]]:
    def request(text: str, tokens: int) -> tuple[str, Any]:
        body = {"model": folder.name, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        return "/v1/chat/completions", body

    return "talaria serve", [sys.executable, "-m", "talaria.cli", "serve", str(folder)], "/health", request


def mlflow(folder: Path) -> tuple[str, list[str], str, Callable[[str, int], tuple[str, Any]]]:
    def request(text: str, tokens: int) -> tuple[str, Any]:
        return "/invocations", {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}

    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", str(folder)]
    return "mlflow models serve", [*command, "--timeout", "600"], "/ping", request


def measured(
    work: Path,
    args: argparse.Namespace,
    name: str,
    command: list[str],
    health: str,
    request: Callable[[str, int], tuple[str, Any]],
) -> list[float]:
    """Tokens a second of each round."""
    server = ServerProcess(work / f"{name.split()[0]}.log")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    server.run([*command, "--host", "127.0.0.1", "--port", str(server.port)], health, {**os.environ, "PATH": path})
    rates = []
    try:
        with httpx.Client(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=args.clients)) as client:

            def ask(number: int) -> int:
                where, body = request(f"{number} {WORDS}", args.tokens)
                answer = client.post(where, json=body).raise_for_status().json()
                return int((answer[0] if isinstance(answer, list) else answer)["usage"]["completion_tokens"])

            ask(0)
            for number in range(args.rounds if name.startswith("talaria") else 1):
                began = time.monotonic()
                with ThreadPoolExecutor(args.clients) as pool:
                    tokens = sum(pool.map(ask, range(args.clients)))
                seconds = time.monotonic() - began
                rates.append(tokens / seconds)
                facts = {"server": name, "round": number, "tokens": tokens, "seconds": round(seconds, 2)}
                print(json.dumps(facts | {"tokens_per_second": round(rates[-1], 1)}), flush=True)
    finally:
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    return rates


if __name__ == "__main__":
    main()
