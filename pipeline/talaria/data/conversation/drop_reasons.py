"""Why a row is left out of messages.parquet: the reasons, what each means, and which stop a run."""

from __future__ import annotations

from typing import Any, NamedTuple

NOT_AN_OBJECT, NO_CONVERSATION, NOT_A_LIST = "not_an_object", "no_conversation", "not_a_list"
NOT_A_TURN, UNKNOWN_ROLE, MISSING_VALUE, NOT_TEXT = "not_a_turn", "unknown_role", "missing_value", "not_text"
MEDIA, BAD_TOOL_CALL, BAD_TOOLS, BAD_SWITCH = "media", "bad_tool_call", "bad_tools", "bad_switch"
TOO_DEEP, DUPLICATE, EMPTY_ANSWER = "too_deep", "duplicate", "empty_answer"
INVALID = "invalid"
"""The file is not JSON from here on: an error under any setting."""
REASONS = {
    NOT_AN_OBJECT: "the row is not an object",
    NO_CONVERSATION: "no conversation: its columns are absent or null",
    NOT_A_LIST: "the conversation is not a list of turns",
    NOT_A_TURN: "a turn is null or not an object",
    UNKNOWN_ROLE: "a turn's role is none of the known ones",
    MISSING_VALUE: "a turn has no role or no text",
    NOT_TEXT: "a turn's text is something else than text",
    MEDIA: "a turn holds an image, audio, video or another part that is no text",
    BAD_TOOL_CALL: "a tool call is not a name with arguments, or stands on a turn that is no answer",
    BAD_TOOLS: "the row's tools are not a list of functions with names",
    BAD_SWITCH: "train, weight or step_loss_mask is neither a number nor a boolean",
    TOO_DEEP: "the row's values are nested too deeply",
    DUPLICATE: "the messages equal an earlier row's (convert.drop_duplicates)",
    EMPTY_ANSWER: "an assistant message is blank (convert.drop_empty_answers)",
}
"""Why a row is dropped -> what that means."""
NOT_CHOSEN, IN_HELD_OUT = "not_chosen", "in_held_out"
OF_MIXTURES = {
    NOT_CHOSEN: "left out by sources.NAME.max_rows, or by repeat below 1",
    IN_HELD_OUT: "says the same as a held-out row of a source",
}
"""Why a sound row of a source is left out of a mixture."""
ALWAYS_FATAL = {INVALID}
FATAL = ALWAYS_FATAL | REASONS.keys() - {DUPLICATE, EMPTY_ANSWER}
"""What stops a run under `convert.on_bad_row: error`."""
WAY_OUT = "fix the row or set convert.on_bad_row to drop"
"""What to do about a row that stops a run, unless it is one of ALWAYS_FATAL."""


class Bad(NamedTuple):
    """A row that cannot be converted. `row` counts from 0, in the chunk or file at hand."""

    row: int
    reason: str
    detail: str


class Unusable(Exception):
    """What keeps one row from being converted: a reason of REASONS, and a detail for the user's sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def kind_of(value: Any) -> str:
    """Name a JSON value's kind for a sentence: 'null', 'a number', 'text', 'a list', ..."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object")
