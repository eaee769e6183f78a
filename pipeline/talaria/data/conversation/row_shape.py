"""The shapes in which people have conversations, and one row of any of them as messages.

    messages        list of {role, content, ...}, as OpenAI's API has them
    conversations   list of {from, value}, ShareGPT
    alpaca          instruction, input, output (history, system)
    dolly           instruction, context, response
    prompt          prompt with completion or response; texts, or lists of messages
    question        question with answer

Each row goes by the shape it has: the first of this list whose columns are there and not null. Beside any of them may stand
`system` (the first message, unless there is one) and `tools`. `convert.fields` and `convert.roles` add other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from talaria.data import json_text
from talaria.data.conversation.content import (
    ASSISTANT,
    MESSAGE_ROLES,
    SHAREGPT_ROLES,
    Message,
    Notes,
    TurnFields,
    message_of,
)
from talaria.data.conversation.drop_reasons import (
    NO_CONVERSATION,
    NOT_A_LIST,
    NOT_AN_OBJECT,
    NOT_TEXT,
    TOO_DEEP,
    Unusable,
    kind_of,
)
from talaria.data.conversation.tool_calls import tools_text

MESSAGES, CONVERSATIONS = "messages", "conversations"


@dataclass(frozen=True)
class PairShape:
    """A question and its answer in columns of their own."""

    name: str
    question: str
    answer: str
    context: str | None = None
    """Column whose text follows the question after a line break, where it is not blank."""
    history: str | None = None
    """Column with earlier [question, answer] pairs."""


PAIRS = (
    PairShape("alpaca", "instruction", "output", "input", "history"),
    PairShape("dolly", "instruction", "response", "context"),
    PairShape("prompt", "prompt", "completion"),
    PairShape("prompt", "prompt", "response"),
    PairShape("question", "question", "answer"),
)


@dataclass(frozen=True)
class ConvertedRow:
    """A row's messages, its tools as JSON text, the shape it had and what was done to it."""

    messages: list[Message]
    tools: str | None
    shape: str
    notes: Notes


@dataclass(frozen=True)
class RowShape:
    """How rows become messages: the names of the shapes above, with those of `convert.fields` and `convert.roles`."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Name here -> column or field in the data (convert.fields)."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role in the data -> role (convert.roles)."""
    extras: frozenset[str] = frozenset()
    """Further fields of a message that the messages column has a place for."""

    @cached_property
    def lists(self) -> tuple[str, ...]:
        """Columns that may hold a list of turns; the first that is there counts."""
        own = self.fields.get(MESSAGES)
        return (own, MESSAGES, CONVERSATIONS) if own else (MESSAGES, CONVERSATIONS)

    @cached_property
    def pairs(self) -> tuple[PairShape, ...]:
        if "prompt" in self.fields or "completion" in self.fields:
            own = PairShape("convert.fields", self.column("prompt"), self.column("completion"), self.fields.get("input"))
            return (own, *PAIRS)
        return PAIRS

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every column that a row's messages may depend on."""
        pairs = {name for pair in self.pairs for name in (pair.question, pair.answer, pair.context, pair.history) if name}
        return frozenset({*self.lists, *pairs, self.column("system"), self.column("tools")})

    def column(self, name: str) -> str:
        return self.fields.get(name, name)

    def fits(self, columns: Iterable[str]) -> bool:
        """Whether rows with these columns may hold a conversation."""
        there = set(columns)
        return bool(there.intersection(self.lists)) or any({pair.question, pair.answer} <= there for pair in self.pairs)

    @cached_property
    def _message_fields(self) -> TurnFields:
        roles = {**MESSAGE_ROLES, **self.roles}
        return TurnFields(self.column("role"), self.column("content"), roles)

    @cached_property
    def _sharegpt_fields(self) -> TurnFields:
        return TurnFields("from", "value", {**SHAREGPT_ROLES, **self.roles}, keeps_switches=False)

    def takes(self, row: Any) -> bool:
        """Whether `conversation` makes one of the row."""
        try:
            self.conversation(row)
        except Unusable:
            return False
        return True

    def conversation(self, row: Any) -> ConvertedRow:
        """The conversation of one row. Raises Unusable where it has none, or one that cannot be trained as it is."""
        if row == json_text.TOO_DEEP:
            raise Unusable(TOO_DEEP, f"nested deeper than {json_text.MAX_DEPTH} levels")
        if not isinstance(row, dict):
            raise Unusable(NOT_AN_OBJECT, f"not an object but {kind_of(row)}")
        notes = Notes()
        shape, messages = self._messages(row, notes)
        system = row.get(self.column("system"))
        if isinstance(system, str) and system:
            messages = _with_system(messages, system, notes)
        elif system not in (None, "", [], {}):
            notes.not_carried.add(f"{self.column('system')} column: {kind_of(system)}, not text")
        tools = tools_text(row.get(self.column("tools")))
        if tools:
            notes.mapped.add("tools column")
        return ConvertedRow(messages, tools, shape, notes)

    def _messages(self, row: Mapping[str, Any], notes: Notes) -> tuple[str, list[Message]]:
        there = [name for name in self.lists if row.get(name) is not None]
        column = next((name for name in there if row[name]), there[0] if there else None)
        if column is not None:
            return column, self._turns(row[column], column, notes)
        for pair in self.pairs:
            if row.get(pair.question) is not None and row.get(pair.answer) is not None:
                return pair.name, self._pair(row, pair, notes)
        raise Unusable(NO_CONVERSATION, f"no conversation: {self._missing(row)}")

    def _missing(self, row: Mapping[str, Any]) -> str:
        """Which of the columns that hold a conversation is there but null, or else what would be one."""
        wanted = [*self.lists, *(name for pair in self.pairs for name in (pair.question, pair.answer))]
        null = [name for name in dict.fromkeys(wanted) if name in row and row[name] is None]
        if null:
            return f"{', '.join(null)} {'is' if len(null) == 1 else 'are'} null"
        return f"it has neither {' nor '.join(self.lists)}, nor both columns of a pair like instruction and output"

    def _turns(self, turns: Any, column: str, notes: Notes, named: str = "turn") -> list[Message]:
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            try:
                turns = json_text.parse(turns)
            except ValueError as error:
                raise Unusable(NOT_A_LIST, f"{column} is text that is not JSON ({error})") from None
        if not isinstance(turns, list):
            raise Unusable(NOT_A_LIST, f"{column} is {kind_of(turns)}, not a list")
        return [
            message_of(turn, self._fields_of(turn, column), self.extras, notes, f"{named} {number}")
            for number, turn in enumerate(turns)
        ]

    def _fields_of(self, turn: Any, column: str) -> TurnFields:
        """The names by the turn itself; where it has neither's, by the column."""
        own, sharegpt = self._message_fields, self._sharegpt_fields
        if isinstance(turn, dict):
            if own.role in turn:
                return own
            if sharegpt.role in turn or (sharegpt.text in turn and own.text not in turn):
                return sharegpt
        return sharegpt if column == CONVERSATIONS else own

    def _pair(self, row: Mapping[str, Any], pair: PairShape, notes: Notes) -> list[Message]:
        question, answer = row[pair.question], row[pair.answer]
        if isinstance(question, list) or isinstance(answer, list):
            return self._message_pair(question, answer, pair, notes)
        for name, text in ((pair.question, question), (pair.answer, answer)):
            if not isinstance(text, str):
                raise Unusable(NOT_TEXT, f"{name!r} is {kind_of(text)}, not text")
        context = row.get(pair.context) if pair.context else None
        if not isinstance(context, str | None):
            raise Unusable(NOT_TEXT, f"{pair.context!r} is {kind_of(context)}, not text")
        if context and context.strip():
            question = f"{question}\n{context}"
        history = (row.get(pair.history) if pair.history else None) or []
        if not isinstance(history, list) or not all(_is_pair(earlier) for earlier in history):
            raise Unusable(NOT_A_LIST, f"{pair.history!r} should be a list of pairs of texts")
        notes.mapped.add(f"{pair.question} and {pair.answer} to messages")
        texts = [text for earlier in history for text in earlier] + [question, answer]
        return [{"role": ("user", ASSISTANT)[number % 2], "content": text} for number, text in enumerate(texts)]

    def _message_pair(self, question: Any, answer: Any, pair: PairShape, notes: Notes) -> list[Message]:
        """Prompt and completion as lists of messages: what the prompt's assistant says is read, not learnt."""
        prompt = self._turns(question, pair.question, notes, f"{pair.question}'s turn")
        completion = self._turns(answer, pair.answer, notes, f"{pair.answer}'s turn")
        notes.mapped.add(f"{pair.question} and {pair.answer} to messages")
        return [message | ({"train": False} if message["role"] == ASSISTANT else {}) for message in prompt] + completion


def _is_pair(earlier: Any) -> bool:
    return isinstance(earlier, list) and len(earlier) == 2 and all(isinstance(text, str) for text in earlier)


def _with_system(messages: list[Message], system: str, notes: Notes) -> list[Message]:
    """The column `system` as the first message, unless the conversation begins with one of its own."""
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"] != system:
            notes.not_carried.add("system column: the conversation begins with a system message of its own")
        return messages
    notes.mapped.add("system column to the first message")
    return [{"role": "system", "content": system}, *messages]
