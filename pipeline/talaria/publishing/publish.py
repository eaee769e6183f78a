"""`talaria publish`: a registered version, wherever MLflow keeps its files, as a repository on the hub or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from talaria.base_model.inspection import read_json
from talaria.common.errors import DataError
from talaria.common.output_folder import refuse_foreign, replacing
from talaria.publishing import hub
from talaria.publishing.card import Statements
from talaria.publishing.destination import Destination, HubRepository, LocalFolder
from talaria.publishing.licences import FoundCard, card_of, hub_card
from talaria.publishing.publication import MADE_BY, Publication, publication, rotary_forms
from talaria.publishing.registered import Registered, read
from talaria.registry.references import find_version
from talaria.registry.versions import files_of, set_tags
from talaria.tracking.mlflow_client import connect, plain_errors

PUBLISHED = "talaria.published"
"""Tag of a version: where on the hub it was published last, with the commit."""


def publish(
    reference: str,
    to: Destination,
    *,
    uri: str,
    public: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    on_line: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Publish `models:/NAME@ALIAS` or `models:/NAME/VERSION`; returns what was published where.

    `license` goes before the setting `registry.license`, and that before the base model's card. `base_model`: the base's name on
    the hub, where it was trained from a local folder. Raises UserError for a destination that is not Talaria's to replace.
    """
    if isinstance(to, LocalFolder):
        refuse_foreign(to.path.resolve(), MADE_BY, "--to")
    else:
        hub.require_token()
    client = connect(uri)
    with plain_errors(uri):
        version = find_version(client, reference)
        with files_of(client, version, uri) as folder:
            if folder is None:
                raise DataError(f"{reference}: its files are gone, so there is nothing to publish.")
            registered = read(version, folder)
            said, made = _prepare(registered, to, license, base_model)
            if not said.licence:
                on_line(f"No licence is stated: {said.base.stated()}. Set registry.license, or give --license.")
            facts = _put(made, registered, to, public)
        if isinstance(to, HubRepository):
            set_tags(client, version.name, version.version, {PUBLISHED: f"{to}@{facts['commit']}"})
    return {
        "model": registered.model,
        "version": registered.version,
        "to": str(to),
        "license": said.licence.get("license"),
        "base_model": said.base_model,
        "files": len(made.files) + len(made.texts),
        **facts,
    }


def _prepare(
    registered: Registered, to: Destination, license: str | None, base_model: str | None
) -> tuple[Statements, Publication]:
    base = registered.base
    found = hub_card(base_model, "main", "model") if base_model else card_of(base, "model")
    config = rotary_forms(registered.folder)
    licence, licence_from = _licence(registered, license, found)
    said = Statements(
        name=to.repo if isinstance(to, HubRepository) else to.path.name,
        base_model=base_model or (str(base["repo"]) if base["source"] == "hub" else None),
        licence=licence,
        licence_from=licence_from,
        base=found,
        data=[card_of(data, "dataset") for data in registered.data],
        needs_5=config is None,
    )
    return said, publication(registered, said, config or read_json(registered.folder / "config.json"))


def _licence(registered: Registered, given: str | None, base: FoundCard) -> tuple[dict[str, str], str]:
    """Return the licence's fields of the card, and where they come from."""
    setting = registered.settings.get("registry", {}).get("license")
    if stated := given or setting:
        return {"license": stated}, "stated by its publisher"
    return base.licence, "the base model's"


def _put(made: Publication, registered: Registered, to: Destination, public: bool) -> dict[str, Any]:
    if isinstance(to, HubRepository):
        message = f"{registered.model} version {registered.version}"
        return hub.upload(to.repo, made, public=public, message=message)
    with replacing(to.path, MADE_BY) as work:
        made.write(work.path)
    return {"path": str(Path(to.path).absolute())}
