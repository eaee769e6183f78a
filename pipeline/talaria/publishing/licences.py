"""What the cards of the base model and of the data say about licence and language. Nothing here is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from talaria.common.errors import UserError

CARD = "README.md"
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class FoundCard:
    """The metadata of a card, or why there is none."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None

    @property
    def licence(self) -> dict[str, str]:
        """license, and license_name and license_link where the card has them; empty where it states none."""
        found = self.metadata.get("license")
        if not isinstance(found, str):
            return {}
        names = ("license", "license_name", "license_link")
        return {name: str(self.metadata[name]) for name in names if self.metadata.get(name)}

    @property
    def languages(self) -> list[str]:
        found = self.metadata.get("language")
        return [str(code) for code in (found if isinstance(found, list) else [found]) if code]

    def stated(self) -> str:
        """Say in a few words which licence the card states."""
        if self.missing:
            return self.missing
        found = self.metadata.get("license")
        text = ", ".join(map(str, found)) if isinstance(found, list) else self.licence.get("license_name") or found
        return str(text) if text else "its card states no licence"


def card_of(settings: Mapping[str, Any], kind: str) -> FoundCard:
    """Return the card of the section `base` (kind: model) or `download` (kind: dataset), from the hub or beside the files.

    `settings`: the section's values. A hub that does not answer, or a card that is not there, is told, not raised.
    """
    source = settings.get("source")
    if source == "hub":
        return hub_card(str(settings["repo"]), str(settings.get("revision") or "main"), kind)
    if source == "local":
        folder = Path(str(settings.get("path")))
        return _read(folder / CARD if folder.is_dir() else folder.parent / CARD)
    return FoundCard(missing="made by Talaria")


def hub_card(repo: str, revision: str, kind: str) -> FoundCard:
    from talaria.common.hub import snapshot

    try:
        folder, _ = snapshot(repo, revision, [CARD], "dataset" if kind == "dataset" else "model")
    except UserError:
        return FoundCard(missing="its card could not be read from the hub")
    return _read(folder / CARD)


def _read(path: Path) -> FoundCard:
    from huggingface_hub import metadata_load

    if not path.is_file():
        return FoundCard(missing="it has no card")
    try:
        return FoundCard(metadata_load(path) or {})
    except (ValueError, OSError, yaml.YAMLError):  # others wrote it
        return FoundCard(missing="its card cannot be read")


def licence_id(text: str, option: str) -> str:
    """Return a licence's id as the hub writes it. Raises UserError for text that can be none."""
    if not _ID.fullmatch(text):
        raise UserError(f"{option}: {text!r} is no licence id of the hub, such as apache-2.0, cc-by-4.0 or other.")
    return text
