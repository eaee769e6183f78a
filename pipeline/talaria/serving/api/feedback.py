"""POST /v1/feedback: a thumb, or what should have been answered."""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from talaria.common.errors import Unavailable
from talaria.serving.api.access import body_of
from talaria.serving.api.request import Refusal, refusal_of
from talaria.serving.feedback.traces import Opinion, TraceWriter, UnknownAnswer


class FeedbackRequest(BaseModel):
    """The body of POST /v1/feedback."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    id: str = Field(pattern=r"^chatcmpl-[0-9a-f]{32}$")
    choice: int = Field(0, ge=0, lt=128)
    thumb: Literal["up", "down"] | None = None
    correction: str | None = Field(None, min_length=1)
    comment: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if self.thumb is None and self.correction is None:
            raise ValueError("give thumb (up or down), correction, or both")
        if self.comment is not None and self.thumb is None:
            raise ValueError("comment goes with a thumb; give thumb, too")
        return self


class Feedback:
    """The endpoint."""

    def __init__(self, traces: TraceWriter | None, most_bytes: int) -> None:
        self.traces, self.most_bytes = traces, most_bytes

    async def __call__(self, request: Request) -> Response:
        if self.traces is None:
            raise Refusal("This server keeps no requests; start it with --traces to give feedback.", status=404)
        try:
            said = FeedbackRequest.model_validate_json(await body_of(request, self.most_bytes))
        except ValidationError as error:
            raise refusal_of(error) from None
        thumb = None if said.thumb is None else said.thumb == "up"
        opinion = Opinion(said.id, said.choice, thumb, said.correction, said.comment)
        try:
            await asyncio.wrap_future(self.traces.add(opinion))
        except UnknownAnswer:
            raise Refusal(f"There is no trace of an answer {said.id!r}.", "id", status=404) from None
        except Unavailable as error:
            raise Refusal(str(error), status=503, kind="server_error") from None
        return JSONResponse({"id": said.id, "object": "feedback", "recorded": True})
