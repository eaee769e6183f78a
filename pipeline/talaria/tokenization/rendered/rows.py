"""Rows of the parquet to ids and masks by a chat template, some of them also by transformers, and compared."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import reasons
from talaria.tokenization.comparison.audit import Candidate
from talaria.tokenization.comparison.reloaded import Here, open_saved
from talaria.tokenization.encoder import Encoded, EncodingMismatch, flatten
from talaria.tokenization.loading import Loading
from talaria.tokenization.parquet_chunks import MessageRows
from talaria.tokenization.rendered.chat_template import BREAK, ChatTemplate, Rendered, TemplateError
from talaria.tokenization.rendered.conversation import REASONING, Conversation, ConversationReader, PromptError, RowError, any_of
from talaria.tokenization.rendered.encoder import Marked, Pieces, encode_pieces, encode_whole, join
from talaria.tokenization.rendered.loss_spans import SpanRule, check_tools, regions_of
from talaria.tokenization.rendered.probe import probe
from talaria.tokenization.tokenizer import encode_with


class RenderedRows:
    """Encodes rows by a template and the tokenizer as transformers opens them; threads share it."""

    holds_the_lock = True

    def __init__(
        self, parquet: Path, loading: Loading, config: Tokenize, source: str, variables: Mapping[str, Any] | None = None
    ) -> None:
        """`variables`: what another process has found them to be; to find them takes half a second of processor time.

        Raises DataError where the template or the saved tokenizer cannot be used.
        """
        self.parquet, self.config, self._loading, self.source = parquet, config, loading, source
        self.variables = self._transformers.special_tokens_map if variables is None else variables
        self.day = config.template_date or datetime.date.today()
        where = f"{loading.folder} (tokenize.template: {config.template})"
        self.template = ChatTemplate(source, self.variables, self.day, where)
        self.probed = probe(self.template)
        self._marks = {role: mark for role, mark in (("system", "<tools>"), ("tool", "<tool_response>")) if mark in source}
        self._controls = {text: token.id for text, token in loading.added.items() if token.special}
        ends = tuple(loading.added)
        self._rule = SpanRule(self.template, self.probed.prompts, ends, config.supervise_newline, config.reasoning != "mask")
        self._splitting = re.compile(f"({any_of(self._controls)})")
        self._in_pieces = bool(self._controls) and loading.pieces_equal_whole(
            next(iter(self._controls)), self._splitting.split(self.probed.prompts["user"])[-1]
        )
        self._reader = ConversationReader(list(self._controls), self._in_pieces, config.reasoning != "drop")

    @cached_property
    def _transformers(self) -> Any:
        return open_saved(self._loading.folder, self.source)

    @cached_property
    def reloaded(self) -> Here:
        return Here(self._loading.folder, self.source, self._transformers)

    @property
    def facts(self) -> dict[str, Any]:
        """How the rows were encoded."""
        encoder = self._loading.encoder if self._in_pieces else None
        return {
            "template": self.config.template,
            **({"begins_with": self.probed.begins_with} if self.probed.begins_with else {}),
            **({"date": self.day.isoformat()} if self.template.asks_date else {}),
            "backend": encoder.backend if encoder else "tokenizers, whole conversations",
            "fallback": encoder.fallback if encoder else None,
        }

    @property
    def control_tokens(self) -> str:
        """A pattern of the tokens that text from the data may look like."""
        return self._splitting.pattern

    def encode(self, rows: MessageRows, first_row: int) -> Encoded:
        """Raises DataError that names a row which cannot be encoded, unless tokenize.on_bad_row is drop."""
        counts: Counter[str] = Counter()
        marked: list[Marked] = []
        unusable = np.zeros(len(rows.messages), np.bool_)
        encoded: list[tuple[list[int], list[bool]]] = []
        for number, conversation in enumerate(self._reader.read(rows.messages, rows.tools)):
            try:
                marked.append(self.mark(conversation, counts))
                if not self._in_pieces:
                    encoded.append(encode_whole(marked[-1], self._transformers.backend_tokenizer))
            except RowError as error:
                if self.config.on_bad_row == "error":
                    raise DataError(f"{self.parquet}, row {first_row + number}: {error}.") from None
                counts[error.reason] += 1
                unusable[number] = True
                del marked[number:]
                marked.append(Marked("", []))
                encoded.append(([], []))
        numbers = range(first_row, first_row + len(marked))
        if self._in_pieces:
            batch = encode_pieces(self._pieces(*marked), numbers, self._loading.encoder.encode)
        else:
            batch = join(encoded, numbers)
        messages = flatten(rows.messages, first_row, str(self.parquet), lenient=np.ones(len(unusable), np.bool_))
        return Encoded(messages, batch, unusable, counts)

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> list[int]:
        """Ids of what a model gets to answer these messages. Raises PromptError where the template does not take them."""
        try:
            conversation = self._reader.conversation([dict(message) for message in messages], tools)
            regions_of(conversation, self._render(conversation), Counter())
            text = self.template.text(conversation.messages, conversation.tools, add_generation_prompt=True)
        except (RowError, TemplateError) as error:
            raise PromptError(self.template.where, f"{error}.") from None
        if not self._in_pieces:
            return list(self._transformers.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        return [int(id) for id in encode_pieces(self._pieces(Marked(text, [])), [0], self._loading.encoder.encode).ids]

    def _pieces(self, *conversations: Marked) -> Pieces:
        pieces = Pieces(self._splitting, self._controls)
        for marked in conversations:
            pieces.add(marked)
        return pieces

    def mark(self, conversation: Conversation | RowError, counts: Counter[str]) -> Marked:
        """The rendered text and its supervised spans. Raises RowError."""
        if isinstance(conversation, RowError):
            raise conversation
        if not conversation.messages:
            return Marked("", [])
        rendered = self._render(conversation)
        counts[reasons.MARKED_TWICE] += self._marks_twice(conversation)
        return Marked(rendered.text, self._rule.spans(conversation, rendered, counts))

    def _marks_twice(self, conversation: Conversation) -> bool:
        """Whether text from the data has what the template writes itself: tools in the system message beside a column `tools`,
        or an answer of a tool that is marked as one, as data sets have it that were made for plain ChatML."""
        return any(
            (mark := self._marks.get(message["role"])) is not None
            and mark in (message.get("content") or "")
            and (message["role"] != "system" or conversation.tools)
            for message in conversation.messages
        )

    def _render(self, conversation: Conversation) -> Rendered:
        """The rendered conversation. Raises RowError where the template does not take it, or knows no reasoning or tools."""
        if not self.probed.renders_reasoning and any(REASONING in message for message in conversation.messages):
            sentence = "has reasoning_content, which the chat template never renders; set tokenize.reasoning to drop"
            raise RowError(reasons.NOT_RENDERED, sentence)
        try:
            rendered = self.template.render(conversation.messages, conversation.tools)
        except TemplateError as error:
            raise RowError(reasons.TEMPLATE_ERROR, f"the chat template raises an error: {error}") from None
        check_tools(conversation, rendered.text)
        return rendered

    def compare(self, candidates: Sequence[Candidate]) -> None:
        """Compare rows' ids with what transformers makes of the saved folder. Raises EncodingMismatch that names the row."""
        for candidate in candidates:
            self._compare(candidate)

    def _compare(self, candidate: Candidate) -> None:
        (conversation,) = ConversationReader([], True, self.config.reasoning != "drop").read(*candidate.rows)
        assert isinstance(conversation, Conversation)  # it was encoded
        found = candidate.ids.tolist()
        if found == self.reloaded.ids([conversation.messages], conversation.tools)[0]:
            return
        if not self._equal_by_pieces(conversation, candidate, found):
            raise EncodingMismatch(
                f"{self.parquet}, row {candidate.number}: its ids differ from those of the saved template in transformers; "
                "report this row."
            )

    def _equal_by_pieces(self, conversation: Conversation, candidate: Candidate, found: list[int]) -> bool:
        """Whether the row is one of the two exceptions (encoder.py), the text is transformers', and the ids those of its pieces
        by Hugging Face's encoder."""
        (read,) = self._reader.read(*candidate.rows)
        marked = self.mark(read, Counter())
        begins = (marked.text[span.start : span.stop][:1] for span in marked.spans)
        if not self._in_pieces or not (BREAK in marked.text or any(begin.isspace() for begin in begins)):
            return False
        ids = encode_pieces(self._pieces(marked), [0], encode_with(self._loading.hugging_face)).ids.tolist()
        text = self.reloaded.text(conversation.messages, conversation.tools)
        return bool(text == marked.text.replace(BREAK, "") and ids == found)
