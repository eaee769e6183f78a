"""From traces to training data: the answers that people liked, and those that they corrected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.serving.feedback.traces import ANSWER, CHOICE, CORRECTION, HAS_SECRET, THUMB, without_secrets
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Trace

_PAGE = 100
Row = dict[str, Any]


def liked_rows(uri: str, experiment: str) -> tuple[list[Row], dict[str, int]]:
    """The rows, oldest first, and how many answers were exported or left out, by reason. Raises DataError, TrackingError.

    A row is a conversation in OpenAI's form. Only its last answer is trained: the earlier ones were not judged.
    """
    client, counts, rows = connect(uri), Counter[str](), list[Row]()
    with plain_errors(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise DataError(f"MLflow has no experiment {experiment!r}; `talaria serve --traces {experiment}` makes one.")
        seen = set()
        for trace in _traces(client, found.experiment_id):
            for row, what in _judged(trace):
                same = json.dumps([row["messages"], row.get("tools")], sort_keys=True)
                what = "repeated" if row["messages"] and same in seen else what
                counts[what] += 1
                if what in ("liked", "corrected"):
                    seen.add(same)
                    rows.append(row)
    return rows, dict(counts)


def _traces(client: MlflowClient, experiment: str) -> Iterator[Trace]:
    token = None
    while True:
        page = client.search_traces(locations=[experiment], max_results=_PAGE, order_by=["timestamp_ms ASC"], page_token=token)
        yield from page
        if not (token := page.token):
            return


def _judged(trace: Trace) -> Iterator[tuple[Row, str]]:
    """Each answer of a trace that somebody judged, as a row, and what becomes of it: liked, corrected, or why it is left out."""
    thumbs, corrections = _latest(trace, THUMB), _latest(trace, CORRECTION)
    for choice in sorted(thumbs.keys() | corrections.keys()):
        root = trace.data.spans[0] if trace.data.spans else None
        answer = _answer(root.outputs, choice) if root is not None else None
        if root is None or answer is None:
            continue
        message, finish = answer
        corrected = corrections.get(choice)
        if corrected:
            message, what = {"role": "assistant", "content": corrected}, "corrected"
        else:
            what = "disliked" if not thumbs.get(choice) else "cut off" if finish == "length" else "liked"
        row = _row(root.inputs, message, trace)
        if HAS_SECRET in trace.info.tags or without_secrets(row) != row:
            what = "with a secret"
        yield row, what


def _latest(trace: Trace, name: str) -> dict[int, Any]:
    """Number of an answer -> what was last said of it, under this name."""
    from mlflow.entities import Expectation, Feedback

    found = {}
    for one in sorted(trace.info.assessments or [], key=lambda one: one.create_time_ms or 0):
        if one.name == name and isinstance(one, Expectation | Feedback) and one.valid is not False:
            found[int((one.metadata or {}).get(CHOICE, 0))] = one.value
    return found


def _answer(outputs: Mapping[str, Any] | None, number: int) -> tuple[dict[str, Any], str] | None:
    """Message and reason of its end; None where there is none of this number."""
    choice = next((one for one in (outputs or {}).get("choices", []) if one["index"] == number), None)
    if choice is None:
        return None
    kept = {name: value for name, value in choice["message"].items() if name in ("role", "content", "tool_calls")}
    return kept, choice["finish_reason"]


def _row(inputs: Mapping[str, Any], answer: dict[str, Any], trace: Trace) -> Row:
    earlier = [{**message, "weight": 0} if message["role"] == "assistant" else dict(message) for message in inputs["messages"]]
    row: Row = {"messages": [*earlier, answer], "source": "feedback", "answer_id": trace.info.tags.get(ANSWER)}
    return row | ({"tools": inputs["tools"]} if inputs.get("tools") else {})
