"""One turn of a conversation as a message: its role, its text, and what else templates and the loss know of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from talaria.data.conversation.drop_reasons import (
    BAD_SWITCH,
    BAD_TOOL_CALL,
    MEDIA,
    MISSING_VALUE,
    NOT_A_TURN,
    NOT_TEXT,
    UNKNOWN_ROLE,
    Unusable,
    kind_of,
)
from talaria.data.conversation.tool_calls import calls_text

Message = dict[str, Any]
ASSISTANT, CALL = "assistant", "function_call"
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "system": "system",
    "user": "user",
    "assistant": ASSISTANT,
    "developer": "developer",
    "function_call": CALL,
    "tool_call": CALL,
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""`from` -> role; the first three as the reference script maps them. The text of CALL is a call, or a list of them."""
MESSAGE_ROLES = {role: role for role in ("system", "developer", "user", ASSISTANT, "tool")} | {"function": "tool"}
"""`role` -> role, for turns that are messages already."""
TEXT_FIELDS = {
    "reasoning_content": "reasoning_content",
    "reasoning": "reasoning_content",
    "thinking": "reasoning_content",
    "name": "name",
    "tool_call_id": "tool_call_id",
}
"""A turn's further field -> the message's; texts all of them."""
CALL_FIELDS = ("tool_calls", "function_call")
SWITCHES: dict[str, Callable[[Any], Any]] = {"train": bool, "weight": float, "step_loss_mask": int}
"""What takes an answer out of the loss where it is false or 0 -> its type."""
KNOWN_FIELDS = {"role", "content", *TEXT_FIELDS, *CALL_FIELDS, *SWITCHES}


@dataclass(frozen=True)
class TurnFields:
    """How a turn names its role and its text, and which roles it knows."""

    role: str
    text: str
    roles: Mapping[str, str]
    keeps_switches: bool = True
    """SWITCHES are carried as they are; else only where they take an answer out of the loss."""
    texts: Mapping[str, str] = field(default_factory=lambda: TEXT_FIELDS)
    calls: tuple[str, ...] = CALL_FIELDS


@dataclass
class Notes:
    """What was done to a row beside copying it, by name: counted over all rows, so that nothing is mapped or lost unseen."""

    mapped: set[str] = field(default_factory=set)
    not_carried: set[str] = field(default_factory=set)


def message_of(turn: Any, fields: TurnFields, extras: frozenset[str], notes: Notes, where: str) -> Message:
    """The message of one turn: role, content, then what is there of TEXT_FIELDS, tool_calls, SWITCHES and `extras`.

    `where` names the turn. Raises Unusable.
    """
    if not isinstance(turn, dict):
        raise Unusable(
            NOT_A_TURN, f"{where} is {kind_of(turn)}, not an object like {{{fields.role!r}: ..., {fields.text!r}: ...}}"
        )
    role = _role(turn, fields, where)
    text = turn.get(fields.text)
    message: Message = {"role": role, "content": text}
    if role == CALL:
        if not isinstance(text, str | dict | list) or not text:
            raise _without(fields.text, fields, turn, where)
        message = {"role": ASSISTANT, "content": "", "tool_calls": calls_text(text)}
        notes.mapped.add(f"{turn[fields.role]} turns to tool_calls")
    further = turn.keys() - {fields.role, fields.text}
    for name in sorted(further):
        if turn[name] is not None:
            _add(message, name, turn[name], fields, extras, notes, where)
    if message["content"] is None and not message.get("tool_calls"):
        raise _without(fields.text, fields, turn, where)
    if not isinstance(text, str) and role != CALL:
        message["content"] = None if text is None else _text(text, fields, notes, where)
    return message


def _without(name: str, fields: TurnFields, turn: Mapping[str, Any], where: str) -> Unusable:
    own = (*KNOWN_FIELDS, fields.role, fields.text)
    others = ", ".join(key for key, value in turn.items() if value is not None and key not in own)
    found = f", but {others} (convert.fields can say what they are)" if others else ""
    return Unusable(MISSING_VALUE, f"{where} has no {name!r}{found}")


def _role(turn: Mapping[str, Any], fields: TurnFields, where: str) -> str:
    role = turn.get(fields.role)
    if role is None:
        raise _without(fields.role, fields, turn, where)
    known = fields.roles.get(role) if isinstance(role, str) else None
    if known is None:
        shown = repr(role) if len(repr(role)) <= 60 else repr(role)[:57] + "..."
        raise Unusable(
            UNKNOWN_ROLE, f"{where} has the unknown role {shown} (known: {', '.join(fields.roles)}; convert.roles can map it)"
        )
    return known


def _add(message: Message, name: str, value: Any, fields: TurnFields, extras: frozenset[str], notes: Notes, where: str) -> None:
    """Put a further field of the turn into the message, or note that it is not carried."""
    if name in fields.calls:
        calls = calls_text(value)
        if calls and message["role"] != ASSISTANT:
            raise Unusable(BAD_TOOL_CALL, f"{where} has tool calls and is a {message['role']} turn")
        if calls:
            message["tool_calls"] = calls
    elif name in fields.texts:
        if not isinstance(value, str):
            raise Unusable(NOT_TEXT, f"{where}: {name!r} is {kind_of(value)}, not text")
        if fields.texts[name] != name:
            notes.mapped.add(f"{name} to {fields.texts[name]}")
        message[fields.texts[name]] = value
    elif name in SWITCHES:
        if not isinstance(value, bool | int | float):
            raise Unusable(BAD_SWITCH, f"{where}: {name!r} is {kind_of(value)}, not a number or a boolean")
        if value not in (0, 1) and message["role"] == ASSISTANT:
            notes.not_carried.add(f"{name}: neither 0 nor 1, and counts as 1")
        if fields.keeps_switches or (message["role"] == ASSISTANT and not value):
            message[name] = SWITCHES[name](value)
    elif name in extras:
        message[name] = value
        if value not in ("", [], {}) and message["role"] == ASSISTANT:
            notes.not_carried.add(f"{name}: kept in the messages, no template shows it")
    elif value not in ("", [], {}):
        notes.not_carried.add(name)


def _text(content: Any, fields: TurnFields, notes: Notes, where: str) -> str:
    """Content that is a list of text parts as one text: the parts end to end, as templates that take parts print them."""
    if not isinstance(content, list):
        raise Unusable(NOT_TEXT, f"{where}: {fields.text!r} is {kind_of(content)}, not text")
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise Unusable(NOT_TEXT, f"{where}: {fields.text!r} is a list that holds {kind_of(part)}, not parts of text")
        kind, text = part.get("type", "text"), part.get("text")
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise Unusable(MEDIA, f"{where} holds a part of the type {kind!r}; only text can be trained")
        texts.append(text)
    notes.mapped.add("parts of text to one text")
    return "".join(texts)
