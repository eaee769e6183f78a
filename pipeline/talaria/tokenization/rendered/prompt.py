"""What a model gets to answer, and where its answer ends, by the chat template that is saved in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.config.schema import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.rendered.probe import answer_ends
from talaria.tokenization.rendered.rows import RenderedRows
from talaria.tokenization.tokenizer import Loading, open_hugging_face
from talaria.tokenization.tokenizer_folder import OWN, template_of, template_source

PromptEncoder = Callable[[Sequence[Mapping[str, Any]]], list[int]]
"""Messages to the ids after which the model answers; text that looks like a control token stays text, as in training."""


def prompt_encoder(folder: Path) -> PromptEncoder:
    """For the model or tokenizer in `folder`. Raises DataError where its template cannot be used."""
    loading = Loading(folder, "tokenizers")
    source = template_of(folder)
    if (source is None or chat.is_chatml(source)) and loading.pieces_equal_whole(chat.END, chat.HEADER):
        oracle = loading.oracle
        return lambda messages: oracle.ids(chat.prompt(messages, oracle.bos_text))[0]
    return RenderedRows(folder, loading, Tokenize(template=OWN), source or template_source(OWN, folder)).prompt


def end_ids(folder: Path) -> list[int]:
    """Ids that end an answer, the end of a text last. Raises DataError where the template ends none."""
    tokenizer = open_hugging_face(folder / "tokenizer.json")
    ends = [*answer_ends(folder, tokenizer), chat.END_OF_TEXT]
    ids = [id for id in dict.fromkeys(map(tokenizer.token_to_id, ends)) if id is not None]
    if not ids:
        raise DataError(f"{folder}: its chat template ends an answer with no token of its own.")
    return ids
