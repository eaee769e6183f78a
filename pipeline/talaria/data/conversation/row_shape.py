"""The shapes in which people have conversations, and one row of any of them as messages.

    messages        list of {role, content, ...}, as OpenAI's API has them
    conversations   list of {from, value}, ShareGPT
    alpaca          instruction, input, output (history, system)
    dolly           instruction, context, response
    prompt          prompt with completion or response; texts, or lists of messages
    question        question with answer

Each row goes by the shape it has: the first of this list whose columns are there and not null. Beside any of them may stand
`system` (the first message, unless there is one) and `tools` (or OpenAI's former `functions`), beside a pair of texts
`reasoning_content`, `reasoning` or `thinking`. `convert.fields` and `convert.roles` add other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from talaria.data import json_text
from talaria.data.conversation.content import (
    ASSISTANT,
    CALL_FIELDS,
    MESSAGE_ROLES,
    SHAREGPT_ROLES,
    TEXT_FIELDS,
    Message,
    Notes,
    TurnFields,
    message_of,
)
from talaria.data.conversation.drop_reasons import (
    MISSING_VALUE,
    NO_CONVERSATION,
    NOT_A_LIST,
    NOT_AN_OBJECT,
    TOO_DEEP,
    Unusable,
    kind_of,
)
from talaria.data.conversation.pair_shape import PAIRS, PairShape, answer_of, is_json_list, text_pair
from talaria.data.conversation.tool_calls import tools_text

MESSAGES, CONVERSATIONS = "messages", "conversations"
FUNCTIONS = "functions"
"""Column that OpenAI's API called tools by before."""
_REASONING = [name for name, to in TEXT_FIELDS.items() if to == "reasoning_content"]


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
        if self.fields.keys() & {"prompt", "completion"}:
            own = PairShape("convert.fields", self.column("prompt"), self.column("completion"), self.fields.get("input"))
            if "tool_calls" in self.fields and "completion" not in self.fields:
                own = replace(own, answer=self.fields["tool_calls"], calls=True)
            return (own, *PAIRS)
        return PAIRS

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every column that a row's messages may depend on."""
        pairs = {name for pair in self.pairs for name in (pair.question, pair.answer, pair.context, pair.history) if name}
        return self.columns_of_lists.union(pairs, self._reasoning)

    @cached_property
    def columns_of_lists(self) -> frozenset[str]:
        """Those that a row with a list of turns depends on."""
        return frozenset({*self.lists, FUNCTIONS, self.column("system"), self.column("tools")})

    def column(self, name: str) -> str:
        return self.fields.get(name, name)

    def fits(self, columns: Iterable[str]) -> bool:
        """Whether rows with these columns may hold a conversation."""
        there = set(columns)
        return bool(there.intersection(self.lists)) or any({pair.question, pair.answer} <= there for pair in self.pairs)

    @cached_property
    def _message_fields(self) -> TurnFields:
        return TurnFields(self.column("role"), self.column("content"), {**MESSAGE_ROLES, **self.roles}, True, *self._further)

    @cached_property
    def _sharegpt_fields(self) -> TurnFields:
        return TurnFields("from", "value", {**SHAREGPT_ROLES, **self.roles}, False, *self._further)

    @cached_property
    def _further(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """The names of a turn's further texts and of its calls."""
        return TEXT_FIELDS | {self.column("reasoning_content"): "reasoning_content"}, (*CALL_FIELDS, self.column("tool_calls"))

    @cached_property
    def _reasoning(self) -> tuple[str, ...]:
        """Columns that may hold the reasoning of a pair's answer; the first that is there counts."""
        return tuple(dict.fromkeys([self.column("reasoning_content"), *_REASONING]))

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
        return ConvertedRow(messages, self._tools(row, messages, notes), shape, notes)

    def _tools(self, row: Mapping[str, Any], messages: list[Message], notes: Notes) -> str | None:
        if tools := tools_text(row.get(self.column("tools"))):
            notes.mapped.add("tools column")
        elif any("tool_calls" in message for message in messages) and (tools := tools_text(row.get(FUNCTIONS))):
            notes.mapped.add(f"{FUNCTIONS} column to tools")  # without calls it may be that of a data set about code
        return tools

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
            message_of(part, self._fields_of(part, column), self.extras, notes, f"{named} {number}")
            for number, turn in enumerate(turns)
            for part in self._split(turn, notes, f"{named} {number}")
        ]

    def _split(self, turn: Any, notes: Notes, where: str) -> Sequence[Any]:
        """A turn of {input, output}, as Capybara has them, as a question and an answer; any other as it is."""
        if not isinstance(turn, dict) or "input" not in turn or "output" not in turn:
            return (turn,)
        if turn.keys() & {"from", "value", self._message_fields.role, self._message_fields.text}:
            return (turn,)
        for name in ("input", "output"):
            if turn[name] is None:
                raise Unusable(MISSING_VALUE, f"{where} has no {name!r}")
        notes.mapped.add("turns of input and output to messages")
        further = {name: value for name, value in turn.items() if name not in ("input", "output")}
        return {"from": "human", "value": turn["input"]}, {"from": "gpt", "value": turn["output"], **further}

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
        if not pair.calls and (isinstance(question, list) or isinstance(answer, list)):
            return self._message_pair(row, pair, notes)
        return text_pair(row, pair, self._reasoning, notes)

    def _message_pair(self, row: Mapping[str, Any], pair: PairShape, notes: Notes) -> list[Message]:
        """Prompt and completion as lists of messages, or one of them as text: what the prompt's assistant says is not learnt."""
        question, answer = row[pair.question], row[pair.answer]
        if isinstance(question, str) and not is_json_list(question):
            question = [{"role": "user", "content": question}]
        prompt = self._turns(question, pair.question, notes, f"{pair.question}'s turn")
        if isinstance(answer, str) and not is_json_list(answer):
            completion = [answer_of(row, pair, self._reasoning, notes)]
        else:
            completion = self._turns(answer, pair.answer, notes, f"{pair.answer}'s turn")
        notes.mapped.add(f"{pair.question} and {pair.answer} to messages")
        return [message | ({"train": False} if message["role"] == ASSISTANT else {}) for message in prompt] + completion


def _with_system(messages: list[Message], system: str, notes: Notes) -> list[Message]:
    """The column `system` as the first message, unless the conversation begins with one of its own."""
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"] != system:
            notes.not_carried.add("system column: the conversation begins with a system message of its own")
        return messages
    notes.mapped.add("system column to the first message")
    return [{"role": "system", "content": system}, *messages]
