"""Where a version is published: `hub:ORG/NAME` or `folder:PATH`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError


@dataclass(frozen=True)
class HubRepository:
    """A model repository on the Hugging Face hub."""

    repo: str

    def __str__(self) -> str:
        return f"hub:{self.repo}"


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return f"folder:{self.path}"


Destination = HubRepository | LocalFolder


def destination(text: str) -> Destination:
    """Read the value of `--to`. Raises UserError where it names neither a repository nor a folder."""
    kind, _, place = text.partition(":")
    if kind == "folder" and place:
        return LocalFolder(Path(place))
    if kind == "hub" and place:
        return HubRepository(hub_id(place, "--to"))
    raise UserError(f"--to {text}: expected hub:ORG/NAME or folder:PATH.")


def hub_id(text: str, option: str) -> str:
    """Return a name on the hub as it is. Raises UserError where the hub takes no such name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        text = ""
    if text.count("/") != 1:
        raise UserError(f"{option}: a name on the hub looks like ORG/NAME, in letters, digits, '-', '_' and '.'.")
    return text
