"""The way back to the champion before this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError, UserError
from talaria.common.redact import scrub
from talaria.registry.versions import (
    CHAMPION,
    PREVIOUS,
    ROLLED_BACK,
    add_entry,
    find_model,
    get_version,
    now,
    search_versions,
    set_tags,
    tags_of,
)
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def rollback(model: str, *, reason: str, who: str, uri: str, request: str | None = None) -> dict[str, Any]:
    """Make the champion before this one champion again, and write on the version that leaves who, when, why.

    `request`: an id under which a repeated call (Airflow's retry) finds that it has been done.
    Raises DataError where there is nothing to go back to, and UserError for a blank reason.
    """
    if not reason.strip():
        raise UserError(f"{model}: the reason is blank; say why, for it is written on the version.")
    client = connect(uri)
    with plain_errors(uri):
        leaving = _find_request(client, model, request) or _champion(client, model)
        number = int(leaving.version)
        if PREVIOUS not in tags_of(leaving):
            raise DataError(f"{model}: version {number} is its first champion, so there is none to go back to.")
        back = int(tags_of(leaving)[PREVIOUS])
        get_version(client, model, back)  # it may have been deleted
        if request is None or tags_of(leaving).get(f"{ROLLED_BACK}_request") != request:
            _write_rollback(client, leaving, back, scrub(reason), scrub(who), request)
        if find_model(client, model).get(CHAMPION) == number:
            client.set_registered_model_alias(model, CHAMPION, str(back))
    return {"model": model, "champion": back, "from": number, "reason": reason, "who": who}


def _write_rollback(client: MlflowClient, leaving: ModelVersion, back: int, reason: str, who: str, request: str | None) -> None:
    model, number = leaving.name, str(leaving.version)
    add_entry(client, model, number, now(), f"Rolled back to version {back} by {who}: {reason}")
    tags = {"": "true", "_to": back, "_by": who, "_at": now(), "_reason": reason}
    set_tags(client, model, number, {f"{ROLLED_BACK}{name}": value for name, value in tags.items()})
    set_tags(client, model, number, {f"{ROLLED_BACK}_request": request})  # last: it says that the rest is written


def _champion(client: MlflowClient, model: str) -> ModelVersion:
    number = find_model(client, model).get(CHAMPION)
    if number is None:
        raise DataError(f"{model}: has no champion to roll back.")
    return get_version(client, model, number)


def _find_request(client: MlflowClient, model: str, request: str | None) -> ModelVersion | None:
    if request is None:
        return None
    rolled_back = search_versions(client, model, f"tags.`{ROLLED_BACK}` = 'true'")
    return next((version for version in rolled_back if tags_of(version).get(f"{ROLLED_BACK}_request") == request), None)
