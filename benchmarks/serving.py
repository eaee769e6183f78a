"""Tokens a second that many clients get: `talaria serve` beside `mlflow models serve`, in turns on one machine.

    python benchmarks/serving.py [--clients 50] [--tokens 32] [--model FOLDER]

Without a model, one of SmolLM2-135M's shape and random weights, which never end an answer: each has its full length. Every client
sends one request at the same moment; the tokens of all answers are divided by the seconds until the last one came. Both servers
run all the time, have answered once before, and are asked in turns, so that what else runs on the machine slows both. Where much
else runs, compare the processor seconds that the servers used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from talaria.registry import mlflow_model
from talaria.store.store import Store

from benchmarks.train import machine
from tests.support import tiny_pipeline
from tests.support.server_process import ServerProcess

Ask = Callable[[int, int], int]
Cpu = Callable[[], float]
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="talaria-serving-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        served = work / "served"
        mlflow_model.fill(served, args.model or random_model(work), card="", run_id="0" * 32, model_id="m-" + "0" * 32)
        servers = [stack.enter_context(started(work, args.clients, server)) for server in (talaria(served), mlflow(served))]
        ratios = []
        for number in range(args.rounds):
            (rate, cpu), (their_rate, their_cpu) = (measured(*server, args, number) for server in servers)
            ratios.append((rate / their_rate, cpu / their_cpu))
            print("ratio: by the clock {:.2f}, by processor seconds {:.2f}".format(*ratios[-1]), flush=True)
        by_clock, by_cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"median ratio: by the clock {by_clock:.2f}, by processor seconds {by_cpu:.2f}", flush=True)


def random_model(work: Path) -> Path:
    config = tiny_pipeline.config(base={"shape": SHAPE, "vocab_size": 4096})
    return tiny_pipeline.prepare(Store(work / "store"), config)["base"].path


@dataclass(frozen=True)
class Rival:
    """A server, and how it is asked."""

    name: str
    command: list[str]
    health: str
    request: Callable[[str, int], tuple[str, Any]]
    """Text and most tokens -> path and body."""


def talaria(folder: Path) -> Rival:
    def request(text: str, tokens: int) -> tuple[str, Any]:
        body = {"model": folder.name, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        return "/v1/chat/completions", body

    return Rival("talaria serve", [sys.executable, "-m", "talaria.cli", "serve", str(folder)], "/health", request)


def mlflow(folder: Path) -> Rival:
    def request(text: str, tokens: int) -> tuple[str, Any]:
        return "/invocations", {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}

    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", str(folder)]
    return Rival("mlflow models serve", [*command, "--timeout", "600"], "/ping", request)


@contextlib.contextmanager
def started(work: Path, clients: int, rival: Rival) -> Iterator[tuple[str, Ask, Cpu]]:
    """The server's name, a function that asks it with a number and most tokens and returns the answer's tokens, and one that
    returns the processor seconds that it has used."""
    server = ServerProcess(work / f"{rival.name.split()[0]}.log")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    command = [*rival.command, "--host", "127.0.0.1", "--port", str(server.port)]
    server.run(command, rival.health, {**os.environ, "PATH": path})
    try:
        with httpx.Client(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=clients)) as client:

            def ask(number: int, tokens: int) -> int:
                where, body = rival.request(f"{number} {WORDS}", tokens)
                answer = client.post(where, json=body).raise_for_status().json()
                return int((answer[0] if isinstance(answer, list) else answer)["usage"]["completion_tokens"])

            def cpu() -> float:
                assert server.process is not None
                own = psutil.Process(server.process.pid)
                return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))

            ask(0, 2)
            yield rival.name, ask, cpu
    finally:
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def measured(name: str, ask: Ask, cpu: Cpu, args: argparse.Namespace, number: int) -> tuple[float, float]:
    """Tokens a second, and tokens a processor second, of one round."""
    began, used = time.monotonic(), cpu()
    with ThreadPoolExecutor(args.clients) as pool:
        tokens = sum(pool.map(ask, range(args.clients), [args.tokens] * args.clients))
    seconds, used = time.monotonic() - began, cpu() - used
    facts = {"server": name, "round": number, "tokens": tokens, "seconds": round(seconds, 2), "cpu_seconds": round(used, 2)}
    print(json.dumps(facts | {"tokens_per_second": round(tokens / seconds, 1)}), flush=True)
    return tokens / seconds, tokens / used


if __name__ == "__main__":
    main()
