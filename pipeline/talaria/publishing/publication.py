"""The files of a published model: weights as they are, settings and tokenizer in forms that others read, and the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.base_model.inspection import INDEX, read_json, weight_files
from talaria.common.files import MANIFEST
from talaria.publishing import both_forms
from talaria.publishing.card import Statements, card
from talaria.publishing.registered import Registered
from talaria.registry.mlflow_model import CARD
from talaria.tokenization.tokenizer_folder import FILES, TEMPLATE_FILE

MADE_BY = "publish"
_CONFIG, _TOKENIZER = "config.json", "tokenizer_config.json"
_AS_THEY_ARE = ("generation_config.json", INDEX, TEMPLATE_FILE, *(name for name in FILES if name != _TOKENIZER))


@dataclass(frozen=True)
class Publication:
    """What a reader gets, by name: files that are copied, and texts that are written. Both hold no path of this machine."""

    files: Mapping[str, Path]
    texts: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Fill a folder. The weights are copies: whoever changes them does not change the registered version."""
        for name, source in self.files.items():
            shutil.copyfile(source, folder / name)
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def rotary_forms(folder: Path) -> dict[str, Any] | None:
    """Return a model's config.json with its rotary settings in both forms; None where version 4 has no words for them."""
    from transformers import AutoConfig

    config = read_json(folder / _CONFIG)
    rope = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict().get(both_forms.ROPE)
    found = both_forms.model_config(config, rope or {})
    if found is not None:
        again = AutoConfig.for_model(**json.loads(json.dumps(found))).to_dict().get(both_forms.ROPE)
        (again or {}).pop("type", None)  # Phi-3's former name for rope_type
        assert again == rope, f"the two forms of {folder} say different things: {again}, {rope}"
    return found


def publication(registered: Registered, said: Statements, config: Mapping[str, Any]) -> Publication:
    """Return the files of a version. `config`: its config.json, in the form that is published."""
    folder = registered.folder
    files = {path.name: path for path in weight_files(folder)}
    files |= {name: folder / name for name in _AS_THEY_ARE if (folder / name).is_file()}
    about = {
        "stage": MADE_BY,
        "model": registered.model,
        "version": registered.version,
        "train_key": registered.tags.get("talaria.train_key"),
        "sha256": registered.tags.get("talaria.sha256"),
    }
    texts = {
        _CONFIG: _json(config),
        _TOKENIZER: _json(both_forms.tokenizer_config(read_json(folder / _TOKENIZER))),
        CARD: card(registered, said),
        MANIFEST: _json(about),
    }
    return Publication(files, texts)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
