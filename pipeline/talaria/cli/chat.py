"""Talk to a model: `talaria chat FOLDER`, or `talaria chat models:/NAME@champion`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.printable import require_characters
from talaria.tokenization.chatml import ASSISTANT
from talaria.tokenization.rendered.prompt import PromptEncoder, end_ids, prompt_encoder

_HELP = "An empty line or Ctrl-D ends the talk; /new begins another."


def resolve_model(name: str, *, uri: str | None = None) -> Path:
    """Return a model's folder: the folder itself, or that of a registered version (models:/NAME@ALIAS, models:/NAME/VERSION).

    Raises DataError if there is none.
    """
    if not name.startswith("models:"):
        return _model_folder(Path(name))
    from talaria.registry.references import find_version
    from talaria.registry.versions import download, local_folder, location_of
    from talaria.tracking.mlflow_client import connect, plain_errors, tracking_uri

    address = uri or tracking_uri()
    client = connect(address)
    with plain_errors(address):
        location = location_of(client, find_version(client, name))
        folder = local_folder(location)
        return _model_folder(folder if folder is not None else Path(download(location, address)))


def _model_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: not a model folder (no config.json); give a folder, or models:/NAME@champion.")
    return folder


@dataclass
class Talk:
    """A conversation with a model; `say` streams its answer and remembers both sides."""

    model: Any
    tokenizer: Any
    """Decodes."""
    encode_prompt: PromptEncoder
    ends: list[int]
    """Ids that end an answer."""
    max_new_tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def with_model(cls, folder: Path, *, system: str | None = None, max_new_tokens: int = 512) -> Talk:
        from transformers import AutoTokenizer

        from talaria.evaluation.greedy_answers import open_for_answers
        from talaria.evaluation.heldout_loss import best_device

        model = open_for_answers(folder, best_device())
        messages = [{"role": "system", "content": system}] if system else []
        return cls(
            model,
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
            prompt_encoder(folder),
            end_ids(folder),
            max_new_tokens,
            messages,
        )

    def say(self, text: str, write: Callable[[str], None]) -> str:
        """Send a message and stream the greedy answer to `write`, up to its end token or `max_new_tokens`.

        Raises DataError for what is no text.
        """
        import torch

        self.messages.append({"role": "user", "content": text})
        try:
            require_characters(self.messages)
        except ValueError as error:  # bytes of a terminal, a pipe or an argument that are not UTF-8
            raise DataError(f"What was asked: {error}; write it in UTF-8.") from None
        ids = self.encode_prompt(self.messages)  # as in training: what looks like a control token is text
        prompt = torch.tensor([ids], device=self.model.device)
        streamer = _streamer(self.tokenizer, write)
        with torch.no_grad():
            self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), streamer=streamer, do_sample=False, **self._ends()
            )
        answer = str(streamer.text)
        self.messages.append({"role": ASSISTANT, "content": answer})
        return answer

    def _ends(self) -> dict[str, Any]:
        """Return generation options with the end tokens, which a base model's generation_config lacks."""
        return {"max_new_tokens": self.max_new_tokens, "eos_token_id": self.ends, "pad_token_id": self.ends[-1]}


def _streamer(tokenizer: Any, write: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Stream(TextStreamer):  # type: ignore[misc]
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            write(text)

    return Stream(tokenizer, skip_prompt=True, skip_special_tokens=True)


def chat(
    model: str, *, prompt: str | None = None, system: str | None = None, max_new_tokens: int = 512, uri: str | None = None
) -> None:
    """Answer `prompt` on stdout, or talk on the terminal until the user ends it."""
    talk = Talk.with_model(resolve_model(model, uri=uri), system=system, max_new_tokens=max_new_tokens)
    if prompt is not None:
        talk.say(prompt, _write)
        _write("\n")
        return
    sys.stderr.write(f"{_HELP}\n")
    for text in _lines():
        if text == "/new":
            del talk.messages[1 if system else 0 :]
            continue
        talk.say(text, _write)
        _write("\n")


def _lines() -> Iterator[str]:
    """Yield what the user types, until an empty line or the end of input."""
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            return
        yield text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
