"""The present champion of a model, and whether a training would give anything new beside it."""

from __future__ import annotations

from typing import Any

from talaria.registry.versions import CHAMPION, LOSS, ROLLED_BACK, TRAIN_KEY, as_number, keys_of, of_training, tags_of
from talaria.tracking.mlflow_client import connect, plain_errors


def champion(model: str, *, uri: str) -> dict[str, Any] | None:
    """The present champion and the keys of the stages it came from; None where there is none."""
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with plain_errors(uri):
        try:
            version = client.get_model_version_by_alias(model, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no such alias
                return None
            raise
    tags = tags_of(version)
    loss = as_number(tags.get(LOSS))
    return {"version": int(version.version), "train_key": tags.get(TRAIN_KEY), "keys": keys_of(version), "loss": loss}


def unchanged(model: str, train_key: str, *, uri: str) -> str | None:
    """Why a scheduled run that would train `train_key` has nothing to do; None where it has."""
    now = champion(model, uri=uri)
    if now is None:
        return None
    if now["train_key"] == train_key:
        return f"Nothing has changed since champion version {now['version']} of {model}: same data, base model and settings."
    client = connect(uri)
    with plain_errors(uri):
        for version in of_training(client, model, train_key):
            if ROLLED_BACK in (tags := tags_of(version)):
                why = tags.get(f"{ROLLED_BACK}_reason")
                return f"Version {version.version} of {model} is this very training, and was rolled back: {why}."
    return None
