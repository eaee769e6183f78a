"""A model that is ready to answer: its weights in memory, its prompt, its ends, its tool calls, and what it was tested with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.config.evaluation_settings import Evaluate
from talaria.evaluation.greedy_answers import open_for_answers
from talaria.evaluation.heldout_loss import best_device
from talaria.registry.references import find_version, parse_reference
from talaria.registry.versions import files_of
from talaria.tokenization.rendered.call_format import CallFormat, call_format
from talaria.tokenization.rendered.prompt import PromptEncoder, end_ids, prompt_encoder
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from tokenizers import Tokenizer

_ATTENTION = {"full_attention", "sliding_attention"}
ANSWER_TOKENS = "evaluate.max_new_tokens"
"""The parameter of a version's run that says how long its answers were in evaluation."""


@dataclass
class LoadedModel:
    """All that answering takes; nothing in it reads the model's folder again."""

    version: int | None
    """Of the registered model; None for a folder."""
    hf: Any
    """transformers' model, its weights in memory of its own."""
    encode_prompt: PromptEncoder
    tokenizer: Tokenizer
    """Decodes."""
    ends: frozenset[int]
    hidden: frozenset[int]
    """Control tokens, which an answer's text leaves out."""
    calls: CallFormat | None
    """How it writes tool calls; None: it takes no tools."""
    context: int
    """Most tokens of prompt and answer together."""
    answer_tokens: int
    """Longest answer where a request sets no limit: what evaluation allowed."""

    @property
    def pad(self) -> int:
        return max(self.ends)

    def cache_bytes(self, tokens: int) -> int:
        """Size of the keys and values of so many tokens."""
        config = self.hf.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * self.hf.dtype.itemsize * tokens)


def open_folder(folder: Path, *, version: int | None = None, answer_tokens: int | None = None) -> LoadedModel:
    """Load the model of a folder onto the first GPU or the CPU. Raises DataError where it cannot be served."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: not a model folder (no config.json); give a folder, or models:/NAME@champion.")
    try:
        hf = open_for_answers(folder, best_device())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: transformers cannot open this model ({error}).") from error
    _refuse_other_layers(folder, hf)
    own_weights(hf)
    calls, tokenizer = call_format(folder), open_hugging_face(folder / "tokenizer.json")
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    marker = tokenizer.token_to_id(calls.opens) if calls and calls.opens else None
    return LoadedModel(
        version,
        hf,
        prompt_encoder(folder),
        tokenizer,
        frozenset(end_ids(folder)),
        frozenset(special - {marker}),
        calls,
        int(hf.config.get_text_config().max_position_embeddings),
        answer_tokens or Evaluate().max_new_tokens,
    )


def own_weights(hf: Any) -> None:
    """Move weights that are a memory map of their file, as on a CPU, into memory: whoever writes over the file changes them."""
    for tensor in [*hf.parameters(), *hf.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _refuse_other_layers(folder: Path, hf: Any) -> None:
    kinds = set(getattr(hf.config.get_text_config(), "layer_types", None) or ())
    if strange := kinds - _ATTENTION:
        raise DataError(f"{folder}: its layers of type {min(strange)!r} cannot be served; only attention can.")
    if "position_ids" not in inspect.signature(hf.forward).parameters:
        raise DataError(f"{folder}: {hf.config.model_type} takes no positions, so its answers cannot be written in batches.")


@dataclass(frozen=True)
class ServedSource:
    """What is served: a folder, or a version or alias of a registered model."""

    name: str
    """The folder, models:/NAME/VERSION or models:/NAME@ALIAS."""
    uri: str | None = None
    """MLflow's address; None with a folder."""

    @property
    def is_registered(self) -> bool:
        return self.name.startswith("models:")

    @property
    def follows(self) -> bool:
        """Whether it may come to mean another version."""
        return self.is_registered and bool(parse_reference(self.name)[1])

    @property
    def model_id(self) -> str:
        """The name that clients use: the registered model's, or the folder's."""
        return parse_reference(self.name)[0] if self.is_registered else Path(self.name).absolute().name

    def version(self) -> int | None:
        """The version that it means now. Raises DataError where there is none, TrackingError where MLflow does not answer."""
        if not self.is_registered:
            return None
        with self._found() as (_, found):
            return int(found.version)

    def open(self) -> LoadedModel:
        """Load what it means now. Raises DataError, TrackingError."""
        if not self.is_registered:
            return open_folder(Path(self.name))
        with self._found() as (client, found), files_of(client, found, str(self.uri)) as folder:
            if folder is None:
                raise DataError(f"{self.name}: the files of version {found.version} ({found.source}) are not on this machine.")
            return open_folder(folder, version=int(found.version), answer_tokens=_tested_with(client, found))

    @contextmanager
    def _found(self) -> Iterator[tuple[MlflowClient, ModelVersion]]:
        client = connect(str(self.uri))
        with plain_errors(str(self.uri)):
            yield client, find_version(client, self.name)


def _tested_with(client: MlflowClient, version: ModelVersion) -> int | None:
    """How long this version's answers were in evaluation, in tokens; None where its run does not say."""
    value = client.get_run(version.run_id).data.params.get(ANSWER_TOKENS) if version.run_id else None
    return int(value) if value else None
