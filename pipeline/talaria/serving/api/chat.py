"""POST /v1/chat/completions: from a request to answers, whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from talaria.serving.api.access import body_of
from talaria.serving.api.completion import AnswerChoice, Envelope
from talaria.serving.api.metrics import Metrics
from talaria.serving.api.request import Ask, Refusal, parse
from talaria.serving.decoding.answer_text import AnswerText
from talaria.serving.decoding.batch import FAILED, Generation, TextPiece
from talaria.serving.decoding.engine import Engine, Full, Retired
from talaria.serving.decoding.sampling import Sampler
from talaria.serving.feedback.traces import TraceWriter, exchange
from talaria.serving.follower import AliasFollower
from talaria.tokenization.rendered.conversation import PromptError

_LOST = Refusal("The model failed while it wrote the answer; try again.", status=500, kind="server_error")


@dataclass
class _Answers:
    """The answers to one request, on their way from the engine's thread to the server's loop."""

    envelope: Envelope
    choices: list[AnswerChoice]
    generations: list[Generation]
    queue: asyncio.Queue[tuple[int, TextPiece]]

    async def pieces(self) -> AsyncIterator[tuple[AnswerChoice, TextPiece]]:
        """Yield until the last answer has ended. Raises Refusal where the engine fails."""
        try:
            while any(choice.finish is None for choice in self.choices):
                index, piece = await self.queue.get()
                if piece.finish == FAILED:
                    raise _LOST
                yield self.choices[index], piece
        finally:
            for generation in self.generations:
                generation.cancelled = True


class ChatCompletions:
    """The endpoint."""

    def __init__(self, follower: AliasFollower, metrics: Metrics, most_bytes: int, traces: TraceWriter | None) -> None:
        """`traces`: where requests are kept; None: nowhere."""
        self.follower, self.metrics, self.most_bytes, self.traces = follower, metrics, most_bytes, traces

    async def __call__(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            ask = parse(await body_of(request, self.most_bytes))
            answers = await self._submitted(ask)
            if ask.request.stream:
                return StreamingResponse(self._streamed(ask, answers, began), media_type="text/event-stream")
            whole = await self._whole(answers, request)
        except Refusal as refusal:
            self.metrics.requests.labels(refusal.status).inc()
            raise
        self._count(ask, answers, began)
        return JSONResponse(whole)

    async def _submitted(self, ask: Ask) -> _Answers:
        """Hand the request to the engine of now. Raises Refusal."""
        if ask.request.store and self.traces is None:
            raise Refusal("store is not supported; leave it out.", "store", code="unsupported_parameter")
        if ask.request.model != self.follower.source.model_id:
            known = self.follower.source.model_id
            raise Refusal(
                f"There is no model {ask.request.model!r} here, only {known!r}.", "model", status=404, code="model_not_found"
            )
        while True:
            fingerprint, engine = self.follower.fingerprint, self.follower.engine
            answers = await asyncio.to_thread(prepare, ask, engine, fingerprint, asyncio.get_running_loop())
            with contextlib.suppress(Retired):  # a successor has come meanwhile, perhaps with another tokenizer
                try:
                    engine.submit(answers.generations)
                except Full:
                    message = "Too many requests wait already; try again."
                    raise Refusal(message, status=429, code="queue_full", kind="rate_limit_error") from None
                return answers

    async def _whole(self, answers: _Answers, request: Request) -> dict[str, Any]:
        """The answers in one object. Raises Refusal; a client that goes away ends them."""

        async def collect() -> dict[str, Any]:
            async for choice, piece in answers.pieces():
                choice.add(piece)
            return answers.envelope.completion(answers.choices)

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(collect()), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise Refusal("The client went away.", status=499)
            return tasks[0].result() or {}
        finally:
            for task in tasks:
                task.cancel()

    async def _streamed(self, ask: Ask, answers: _Answers, began: float) -> AsyncIterator[str]:
        envelope = answers.envelope
        for choice in answers.choices:
            yield event(envelope.chunk(choice.index, {"role": "assistant", "content": ""}))
        first, status = True, 499  # the status that stays where the client goes away
        try:
            async for choice, piece in answers.pieces():
                for delta in choice.add(piece):
                    if first:
                        self.metrics.first_piece.observe(time.monotonic() - began)
                        first = False
                    yield event(envelope.chunk(choice.index, delta))
                if choice.finish is not None:
                    yield event(envelope.chunk(choice.index, {}, choice.finish))
            if ask.request.stream_options and ask.request.stream_options.include_usage:
                yield event(envelope.last_chunk(answers.choices))
            status = 200
            self._count(ask, answers, began)  # first, so that feedback to what ended finds it
            yield "data: [DONE]\n\n"
        except Refusal as refusal:
            status = refusal.status
            yield event(refusal.body)
        finally:
            if status != 200:
                self.metrics.requests.labels(status).inc()

    def _count(self, ask: Ask, answers: _Answers, began: float) -> None:
        self.metrics.requests.labels(200).inc()
        self.metrics.prompt_tokens.inc(answers.envelope.prompt_tokens)
        self.metrics.answer_tokens.inc(sum(choice.tokens for choice in answers.choices))
        self.metrics.seconds.observe(time.monotonic() - began)
        if self.traces is not None and ask.request.store is not False:
            whole = answers.envelope.completion(answers.choices)
            self.traces.record(exchange(ask.request.messages, ask.request.tools, whole, began))


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def prepare(ask: Ask, engine: Engine, fingerprint: str, loop: asyncio.AbstractEventLoop) -> _Answers:
    """Everything before the engine: prompt, limits, tools. Raises Refusal."""
    model, request = engine.model, ask.request
    if ask.tools and model.calls is None:
        raise Refusal("This model's chat template writes no tool calls that this server can read.", "tools")
    try:
        prompt = model.encode_prompt(ask.messages, ask.tools)
    except PromptError as error:
        raise Refusal(error.sentence, "messages") from None
    limit = _limit(request.limit, len(prompt), engine)
    queue: asyncio.Queue[tuple[int, TextPiece]] = asyncio.Queue()
    choices = [AnswerChoice(index, model.calls if ask.tools else None) for index in range(request.n)]

    def deliver(index: int, piece: TextPiece) -> None:
        with contextlib.suppress(RuntimeError):  # the server's loop has ended
            loop.call_soon_threadsafe(queue.put_nowait, (index, piece))

    def generations() -> Iterator[Generation]:
        for index in range(request.n):
            text = AnswerText(model.tokenizer, model.hidden, request.stops)
            sampler = Sampler(request.sampling, index)
            yield Generation(prompt, limit, sampler, text, functools.partial(deliver, index), request.stream)

    envelope = Envelope(request.model, fingerprint, len(prompt))
    return _Answers(envelope, choices, list(generations()), queue)


def _limit(wanted: int | None, prompt: int, engine: Engine) -> int:
    """Most tokens of the answer. Raises Refusal where they and the prompt are more than the model can hold."""
    room = engine.longest - prompt
    if room < (wanted or 1):
        asked = f" and {wanted:,} of the answer" if wanted else ""
        message = f"The prompt's {prompt:,} tokens{asked} are more than the {engine.longest:,} that this server takes."
        raise Refusal(message, "messages", code="context_length_exceeded")
    return wanted or min(engine.model.answer_tokens, room)
