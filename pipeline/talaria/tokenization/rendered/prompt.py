"""What a model gets to answer, and where its answer ends, by the chat template that is saved in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.loading import Loading
from talaria.tokenization.rendered.conversation import REASONING, TOOL_CALLS, PromptError
from talaria.tokenization.rendered.probe import answer_ends
from talaria.tokenization.rendered.rows import RenderedRows
from talaria.tokenization.tokenizer import Tokenizer, open_hugging_face
from talaria.tokenization.tokenizer_folder import OWN, template_of, template_source


class PromptEncoder(Protocol):
    """Messages, and the tools on offer, to the ids after which the model answers."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> list[int]:
        """Text that looks like a control token stays text, as in training.

        messages, tools: as the messages parquet has them, with `tool_calls` and the tools as JSON text of a list.
        Raises PromptError where the chat template does not take them, or leaves tools, calls or reasoning out.
        """


def prompt_encoder(folder: Path) -> PromptEncoder:
    """For the model or tokenizer in `folder`. Raises DataError where its template cannot be used."""
    loading = Loading(folder, "tokenizers")
    source = template_of(folder)
    if (source is None or chat.is_chatml(source)) and loading.pieces_equal_whole(chat.END, chat.HEADER):
        return _of_chatml(loading.oracle)
    return RenderedRows(folder, loading, Tokenize(template=OWN), source or template_source(OWN, folder)).prompt


def _of_chatml(tokenizer: Tokenizer) -> PromptEncoder:
    def encode(messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> list[int]:
        found = next((name for name in (TOOL_CALLS, REASONING) for message in messages if message.get(name)), None)
        if left_out := "tools" if tools else found:
            raise PromptError(str(tokenizer.folder), f"its chat template, plain ChatML, does not render {left_out}.")
        return tokenizer.ids(chat.prompt(messages, tokenizer.bos_text))[0]

    return encode


def end_ids(folder: Path) -> list[int]:
    """Ids that end an answer, the end of a text last. Raises DataError where the template ends none."""
    tokenizer = open_hugging_face(folder / "tokenizer.json")
    ends = [*answer_ends(folder, tokenizer), chat.END_OF_TEXT]
    ids = [id for id in dict.fromkeys(map(tokenizer.token_to_id, ends)) if id is not None]
    if not ids:
        raise DataError(f"{folder}: its chat template ends an answer with no token of its own.")
    return ids
