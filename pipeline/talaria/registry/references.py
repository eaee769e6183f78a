"""Names of registered versions as MLflow writes them: `models:/NAME@ALIAS` and `models:/NAME/VERSION`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talaria.common.errors import DataError, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def parse_reference(name: str) -> tuple[str, str, str]:
    """Split 'models:/NAME@ALIAS' or 'models:/NAME/VERSION' into (name, alias, version); one of the last two is empty."""
    path = name.removeprefix("models:").strip("/")
    model, _, alias = path.partition("@")
    if alias and model:
        return model, alias, ""
    model, _, version = path.rpartition("/")
    if not model or not version.isdigit():
        raise UserError(f"{name}: expected models:/NAME@ALIAS or models:/NAME/VERSION, for example models:/tiny@champion.")
    return model, "", version


def find_version(client: MlflowClient, name: str) -> ModelVersion:
    """Return the version of this name. Raises DataError where MLflow has none."""
    from mlflow.exceptions import MlflowException

    model, alias, version = parse_reference(name)
    try:
        return client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise DataError(f"{name}: MLflow has no such model version.") from None
        raise
