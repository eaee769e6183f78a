"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The server's numbers, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("talaria_requests", "Chat completions by HTTP status.", ["status"], registry=registry)
        self.prompt_tokens = Counter("talaria_prompt_tokens", "Tokens of prompts that were answered.", registry=registry)
        self.answer_tokens = Counter("talaria_answer_tokens", "Tokens of answers.", registry=registry)
        self.seconds = Histogram(
            "talaria_request_seconds", "From a request to the end of its answer.", registry=registry, buckets=_SECONDS
        )
        self.first_piece = Histogram(
            "talaria_first_piece_seconds", "From a streamed request to its first text.", registry=registry, buckets=_SECONDS
        )
        self.running = Gauge("talaria_answers_running", "Answers that are being written.", registry=registry)
        self.waiting = Gauge("talaria_answers_waiting", "Answers that wait for their turn.", registry=registry)
        self.version = Gauge("talaria_served_version", "Version of the registered model that answers.", registry=registry)
        self.swaps = Counter("talaria_model_swaps", "Models taken up, the first one too.", registry=registry)
        self.lost_traces = Counter("talaria_lost_traces", "Requests that were not kept, though they should.", registry=registry)
        self.failed_loads = Counter(
            "talaria_failed_swaps", "Times that the wanted version could not be served.", registry=registry
        )

    def swapped(self, version: int | None) -> None:
        self.swaps.inc()
        self.version.set(float("nan") if version is None else version)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self.registry))
