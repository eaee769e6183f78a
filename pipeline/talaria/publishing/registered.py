"""What a registered version says of itself: its tags, and the settings and results in its card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from talaria.common.errors import DataError
from talaria.registry.kept_models import content_digest
from talaria.registry.mlflow_model import CARD
from talaria.registry.versions import DIGEST, tags_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_SETTINGS = "Every setting"


@dataclass(frozen=True)
class Registered:
    """A version that Talaria registered, and the folder of its files."""

    model: str
    version: int
    tags: Mapping[str, str]
    folder: Path
    settings: Mapping[str, Any]
    """The configuration, as a tree."""
    sections: Mapping[str, str]
    """Title -> text of the sections of its card."""

    @property
    def base(self) -> Mapping[str, Any]:
        """The section `base`, with the commit that was trained from as its revision."""
        return _pinned(self.settings["base"], self.tags.get("talaria.base.revision"))

    @property
    def data(self) -> list[Mapping[str, Any]]:
        """The section `download` of each source; of a single one, with the commit that was trained on as its revision."""
        if sources := self.settings.get("sources"):
            return [source["download"] for source in sources.values()]
        return [_pinned(self.settings["download"], self.tags.get("talaria.data.revision"))]

    @property
    def repositories(self) -> list[str]:
        """Names of the data sets that are on the hub, each once."""
        return list(dict.fromkeys(str(data["repo"]) for data in self.data if data["source"] == "hub"))


def read(version: ModelVersion, folder: Path) -> Registered:
    """Read a version. Raises DataError where its files are not those that were registered, or Talaria did not register it."""
    tags = tags_of(version)
    expected = tags.get(DIGEST)
    if expected is None:
        raise DataError(f"{version.name} version {version.version}: was not registered by Talaria, so nothing is known of it.")
    if content_digest(folder) != expected:
        raise DataError(
            f"{folder}: its files are not those that were registered as {version.name} version {version.version}; "
            "they were damaged or changed, so register the training again."
        )
    sections = _sections((folder / CARD).read_text(encoding="utf-8"))
    tree = yaml.safe_load(sections.pop(_SETTINGS, "").strip().removeprefix("```yaml").removesuffix("```"))
    if not isinstance(tree, dict) or not {"base", "download", "train"} <= tree.keys():
        raise DataError(f"{folder / CARD}: does not hold the settings that registration writes; register the training again.")
    return Registered(version.name, int(version.version), tags, folder, tree, sections)


def _sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", card, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _pinned(section: Mapping[str, Any], commit: str | None) -> dict[str, Any]:
    return {**section, **({"revision": commit} if commit else {})}
