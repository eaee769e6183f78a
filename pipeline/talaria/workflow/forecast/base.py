"""The base model of a run before it is fetched: its family, its size, and whether its tokenizer can be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.base_model.families import require_trainable
from talaria.base_model.inspection import read_json
from talaria.base_model.model_size import ModelSize, size_of_folder, size_of_random, size_on_hub
from talaria.base_model.stage import require_trainable_base
from talaria.common.errors import Unavailable
from talaria.config.schema import Config
from talaria.store.store import Store
from talaria.tokenization.loading import Loading
from talaria.tokenization.tokenizer_folder import CHATML, FILES, OWN, TEMPLATE_FILE, template_source


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base model: None for what could not be found out."""

    origin: str | None = None
    model_type: str | None = None
    size: ModelSize | None = None
    settings: Mapping[str, Any] | None = None
    """Its config.json."""
    tokenizer: Path | None = None
    """Folder with its tokenizer; None where one has to be made first."""

    def as_json(self) -> dict[str, Any]:
        size = {"parameters": self.size.parameters, "bytes": self.size.stored_bytes} if self.size else {}
        return {"origin": self.origin, "model_type": self.model_type, **size}


UNKNOWN = BaseModel()


def look(config: Config, store: Store, keys: Mapping[str, str]) -> BaseModel:
    """Raises DataError, one sentence, for a base model that the run could not train or encode with."""
    base, origin = config.base, config.base.origin
    if (made := store.here("base", keys["base"]) if "base" in keys else None) is not None:
        settings = read_json(made.path / "config.json")
        return BaseModel(origin, settings.get("model_type"), size_of_folder(made.path), settings, made.path)
    if base.source == "random":
        if base.tokenizer is not None:
            _require_tokenizer(base.tokenizer, config)
        return BaseModel(origin, "qwen3", size_of_random(base), json.loads(base.shape.model_dump_json()), base.tokenizer)
    if base.source == "local":
        assert base.path is not None  # the configuration has checked it
        if not base.path.is_dir():  # the stage's key has said so
            return UNKNOWN
        require_trainable_base(config)
        _require_tokenizer(base.path, config)
        settings = read_json(base.path / "config.json")
        return BaseModel(origin, settings["model_type"], size_of_folder(base.path), settings, base.path)
    from talaria.common.hub import snapshot

    folder, _ = snapshot(base.repo, base.revision, ["config.json", *FILES, TEMPLATE_FILE])
    settings = read_json(folder / "config.json")
    require_trainable(settings, base.repo)
    _require_tokenizer(folder, config)
    try:
        size = size_on_hub(base, folder / "config.json")
    except Unavailable:  # offline, with the files in the library's cache
        size = None
    return BaseModel(origin, settings["model_type"], size, settings, folder)


def flops_per_token(model: BaseModel) -> float | None:
    """Return the operations of training on one token without attention's: 6 a weight that it is multiplied with."""
    if model.size is None or model.settings is None:
        return None
    settings = model.settings
    table = 0 if settings.get("tie_word_embeddings", True) else settings.get("vocab_size", 0) * settings.get("hidden_size", 0)
    experts = settings.get("num_experts_per_tok")
    if experts:  # most of its weights are left out for a token; config.json alone does not say how many
        return None
    return 6.0 * max(model.size.parameters - table, 1)


def _require_tokenizer(folder: Path, config: Config) -> None:
    """Raise DataError where there is no tokenizer that can be read, or one that does not know the template that is asked for."""
    loading = Loading(folder, "tokenizers")
    if config.tokenize.template == CHATML:
        loading.oracle  # noqa: B018 (made to see whether it can be)
    elif config.tokenize.template == OWN:  # a file's digest is asked for with the stages' keys
        template_source(OWN, folder)
