"""The shapes a row may have, and what is wrong with one that has neither.

A source row holds either `conversations` (ShareGPT: turns of from/value) or `messages` (role/content, further fields kept).
Where both are there, `messages` counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""Source role -> role, as the reference script maps them."""
MESSAGE_ROLES = ("system", "user", "assistant", "tool")
"""Roles that the chat template knows, for sources that are in `messages` shape already."""

NOT_AN_OBJECT, NO_CONVERSATION, NOT_A_LIST = "not_an_object", "no_conversation", "not_a_list"
NOT_A_TURN, UNKNOWN_ROLE, MISSING_VALUE, NOT_TEXT = "not_a_turn", "unknown_role", "missing_value", "not_text"
DUPLICATE, EMPTY_ANSWER, UNREADABLE = "duplicate", "empty_answer", "unreadable"
INVALID = "invalid"
"""The file is not JSON from here on: an error under any setting."""
REASONS = {
    NOT_AN_OBJECT: "the row is not an object",
    NO_CONVERSATION: "no conversation: the column is absent or null",
    NOT_A_LIST: "the conversation is not a list of turns",
    NOT_A_TURN: "a turn is null or not an object",
    UNKNOWN_ROLE: "a turn's role is none of the known ones",
    MISSING_VALUE: "a turn has no role or no text",
    NOT_TEXT: "a turn's text is something else than text",
    UNREADABLE: "a value does not fit its column, or its text is broken",
    DUPLICATE: "the messages equal an earlier row's (convert.drop_duplicates)",
    EMPTY_ANSWER: "an assistant message is blank (convert.drop_empty_answers)",
}
"""Why a row is dropped -> what that means."""
ALWAYS_FATAL = {INVALID}
FATAL = ALWAYS_FATAL | REASONS.keys() - {DUPLICATE, EMPTY_ANSWER}
"""What stops a run under `convert.on_bad_row: error`."""


class Bad(NamedTuple):
    """A row that cannot be converted. `row` counts from 0, in the chunk or file at hand."""

    row: int
    reason: str
    detail: str


class Names(NamedTuple):
    """Column and fields of one of the two shapes."""

    column: str
    role: str
    text: str
    roles: dict[str, str]


SHAREGPT = Names("conversations", "from", "value", ROLES)
MESSAGES = Names("messages", "role", "content", {role: role for role in MESSAGE_ROLES})


def names_for(columns: Any) -> Names | None:
    """The shape of a source with these columns."""
    return next((names for names in (MESSAGES, SHAREGPT) if names.column in columns), None)


Problem = Callable[[Any], tuple[str, str] | None]
"""JSON row -> (reason, detail) of what makes it useless, or None."""


def not_an_object(row: Any) -> tuple[str, str] | None:
    """The least a row must be, before a function of the user's own gives it a conversation."""
    return None if isinstance(row, dict) else (NOT_AN_OBJECT, f"not an object but {_kind(row)}")


def problem(row: Any) -> tuple[str, str] | None:
    """What keeps a row from being converted."""
    if not isinstance(row, dict):
        return not_an_object(row)
    names = names_for(row)
    turns = row.get(names.column) if names else None
    if names is None or turns is None:
        return NO_CONVERSATION, "no conversation"
    if not isinstance(turns, list):
        return NOT_A_LIST, f"{names.column} is {_kind(turns)}, not a list"
    for number, turn in enumerate(turns):
        found = _turn_problem(turn, names)
        if found:
            return found[0], f"turn {number}{found[1]}"
    return None


def _turn_problem(turn: Any, names: Names) -> tuple[str, str] | None:
    if not isinstance(turn, dict):
        return NOT_A_TURN, f" is {_kind(turn)}, not an object"
    role, text = turn.get(names.role), turn.get(names.text)
    if role is None:
        return MISSING_VALUE, f" has no {names.role!r}"
    if not isinstance(role, str) or role not in names.roles:
        return UNKNOWN_ROLE, unknown_role(role, names)
    if text is None:
        return MISSING_VALUE, f" has no {names.text!r}"
    if not isinstance(text, str):
        return NOT_TEXT, f": {names.text!r} is {_kind(text)}, not text"
    return None


def unknown_role(role: Any, names: Names) -> str:
    shown = repr(role) if len(repr(role)) <= 60 else repr(role)[:57] + "..."
    return f" has the unknown role {shown} (known: {', '.join(names.roles)})"


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object")
