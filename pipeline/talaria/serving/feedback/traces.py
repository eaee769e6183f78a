"""Requests and answers as MLflow traces, written by a thread of their own: no client waits for MLflow."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from talaria.common.errors import Unavailable
from talaria.common.redact import scrub
from talaria.tracking.mlflow_client import TRACES, connect, experiment_id, files_beside, plain_errors

if TYPE_CHECKING:
    from mlflow.entities import Trace

log = logging.getLogger(__name__)
ANSWER, HAS_SECRET = "talaria.answer", "talaria.has_secret"
"""Tags of a trace: the answer's id, as the client knows it; whether a secret was taken out of request, answer or correction."""
THUMB, CORRECTION, CHOICE = "thumb", "correction", "choice"
"""Names of the assessments, and of the field of their metadata that says which of several answers they are about."""
_MOST_WAITING = 10_000


@dataclass(frozen=True)
class Exchange:
    """A request and its answers."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    completion: dict[str, Any]
    """As the client got it."""
    seconds: float
    ended_ns: int


@dataclass(frozen=True)
class Opinion:
    """What somebody says of an answer."""

    id: str
    """The answer's."""
    choice: int = 0
    thumb: bool | None = None
    correction: str | None = None
    """What should have been answered."""
    comment: str | None = None


class UnknownAnswer(Exception):
    """No trace has an answer of this id."""


class TraceWriter:
    """Writes traces into one experiment, and the opinions of people to them, in the order in which they come."""

    def __init__(self, uri: str, experiment: str, *, on_loss: Callable[[], None] = lambda: None) -> None:
        """Finds or makes the experiment. `on_loss`: called for each trace that is not written. Raises UserError."""
        import mlflow

        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # the thread here waits, so that an opinion finds its trace
        self._uri, self._on_loss = uri, on_loss
        self._client = connect(uri)
        with plain_errors(uri):
            self._experiment = experiment_id(self._client, experiment, files_beside(uri), kind=TRACES)
        mlflow.set_tracking_uri(uri)  # tracing knows no other way
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Have a trace written some time soon. Where too many wait, it is lost."""
        try:
            self._jobs.put_nowait(lambda: self._write(exchange))
        except queue.Full:
            self._on_loss()

    def add(self, opinion: Opinion) -> Future[None]:
        """Have an opinion written, after all traces before it. The future raises UnknownAnswer, Unavailable."""
        done: Future[None] = Future()

        def job() -> None:
            try:
                self._assess(opinion)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            done.set_exception(Unavailable("Too many traces wait to be written."))
        return done

    def close(self, seconds: float = 30.0) -> None:
        """Write what waits, for at most so many seconds."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("A trace was not written.")
                self._on_loss()

    def _write(self, exchange: Exchange) -> None:
        import mlflow
        from mlflow.entities import SpanType
        from mlflow.tracing.constant import SpanAttributeKey

        asked = {"messages": exchange.messages} | ({"tools": exchange.tools} if exchange.tools else {})
        inputs, outputs = without_secrets(asked), without_secrets(exchange.completion)
        usage = exchange.completion["usage"]
        tags = {ANSWER: exchange.completion["id"]}
        if (inputs, outputs) != (asked, exchange.completion):
            tags[HAS_SECRET] = "true"
        span = mlflow.start_span_no_context(
            "chat completion",
            span_type=SpanType.CHAT_MODEL,
            inputs=inputs,
            tags=tags,
            experiment_id=self._experiment,
            start_time_ns=exchange.ended_ns - int(exchange.seconds * 1e9),
        )
        tokens = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens", "total_tokens": "total_tokens"}
        span.set_attribute(SpanAttributeKey.CHAT_USAGE, {name: usage[ours] for name, ours in tokens.items()})
        span.set_attribute(SpanAttributeKey.MODEL, exchange.completion["system_fingerprint"])
        span.end(outputs=outputs, end_time_ns=exchange.ended_ns)

    def _assess(self, opinion: Opinion) -> None:
        import mlflow
        from mlflow.entities import AssessmentSource

        trace = self._trace(opinion.id)
        source = AssessmentSource(source_type="HUMAN", source_id="client")
        about: dict[str, Any] = {"source": source, "metadata": {CHOICE: str(opinion.choice)}}
        with plain_errors(self._uri):
            if opinion.thumb is not None:
                comment = without_secrets(opinion.comment)
                mlflow.log_feedback(trace_id=trace, name=THUMB, value=opinion.thumb, rationale=comment, **about)
            if opinion.correction is not None:
                kept = without_secrets(opinion.correction)
                if kept != opinion.correction:
                    self._client.set_trace_tag(trace, HAS_SECRET, "true")
                mlflow.log_expectation(trace_id=trace, name=CORRECTION, value=kept, **about)

    def _trace(self, answer: str) -> str:
        """The id of the trace that holds the answer. Raises UnknownAnswer, TrackingError."""
        with plain_errors(self._uri):
            found: list[Trace] = self._client.search_traces(
                locations=[self._experiment], filter_string=f"tag.`{ANSWER}` = '{answer}'", max_results=1, include_spans=False
            )
        if not found:
            raise UnknownAnswer
        return str(found[0].info.trace_id)


def exchange(messages: list[dict[str, Any]], tools: Any, completion: dict[str, Any], began: float) -> Exchange:
    """An exchange that ends now. `began`: by the monotonic clock."""
    return Exchange(messages, tools, completion, time.monotonic() - began, time.time_ns())


def without_secrets(value: Any) -> Any:
    """A JSON value with secrets taken out of all its texts."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [without_secrets(one) for one in value]
    if isinstance(value, dict):
        return {name: without_secrets(one) for name, one in value.items()}
    return value
