"""Connect to MLflow without passwords in logs, endless retries, or two processes creating one database."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from talaria.common.errors import Unavailable, UserError
from talaria.common.redact import scrub
from talaria.tracking.mlflow_database import ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment that MLflow's page opens as model training, rather than ask what it is."""
TRACES = {"mlflow.experimentKind": "genai_development"}
"""Tag of one that it opens as traces."""
_AS_TRAINING = "?workflowType=machine_learning"
"""Shows a page among MLflow's pages of trainings; a browser that never chose opens those of traces and judges around it."""
ARTIFACTS = "mlflow-artifacts"
"""Folder beside a database in a file: experiments keep their files there."""
_SQLITE_PATIENCE = 60  # seconds that a writer waits for another; SQLite's own 5 are short for a busy disk
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # for files of a few kilobytes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's default waits for minutes; whoever calls us retries with more sense
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(Unavailable):
    """MLflow did not answer or refused a request. A retry may help."""


def tracking_uri(store: Path | None = None) -> str:
    """Return the address of MLflow: MLFLOW_TRACKING_URI, or a SQLite file in the store.

    A user name and password in the address move to the variables that MLflow reads them from, so that the address
    itself can be printed. Raises UserError if there is neither an address nor a store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return _without_login(uri)
    if store is None:
        raise UserError("MLFLOW_TRACKING_URI is not set and there is no store to keep MLflow's data in; set it, or name a store.")
    return f"sqlite:///{Path(store).absolute()}/mlflow.db?timeout={_SQLITE_PATIENCE}"


def public_uri(uri: str) -> str:
    """Return the address without user, password and query, for logs."""
    parts = urlsplit(uri)
    if not parts.scheme:
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")).replace("sqlite:/", "sqlite:///", 1)


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def connect(uri: str) -> MlflowClient:
    """Return a client of the server or database at `uri`. Raises TrackingError if a database cannot be opened."""
    uri = _without_login(uri)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils", "alembic"):  # a line for each attempt otherwise
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    with plain_errors(uri):
        if database := database_file(uri):
            ensure_database(database, (database.parent / ARTIFACTS).as_uri())
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def database_file(uri: str) -> Path | None:
    """Return the file of a database in a file; None with a server."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def files_beside(uri: str) -> Path | None:
    """Return the folder for experiments' files beside a database in a file; None with a server."""
    database = database_file(uri)
    return database.parent / ARTIFACTS if database else None


def existing_uri(store: Path) -> str:
    """Return `tracking_uri` for a command that works on what is there.

    Raises UserError where MLflow would make an empty database in whatever folder the user happens to be in.
    """
    uri = tracking_uri(store)
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(f"{database}: there is no such database; set MLFLOW_TRACKING_URI, or name the store by --store.")
    return uri


@contextlib.contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises into a TrackingError of one line."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        unreachable = "failed with exception" in reason  # MLflow's words for any trouble below HTTP
        what = "does not answer." if unreachable else f"refuses: {scrub(reason).rstrip('.')}."
        raise TrackingError(f"MLflow at {public_uri(uri)} {what}") from error


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None, *, kind: Mapping[str, str] = MODEL_TRAINING) -> str:
    """Return the experiment's id; create it if it is missing, with the tag `kind`.

    `artifacts`: folder for its files; None: the server's default.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = (artifacts / name).absolute().as_uri() if artifacts else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=dict(kind)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run made it meanwhile
    if found is None or found.lifecycle_stage != "active":
        raise UserError(f"MLflow's experiment {name!r} is deleted; restore it, or set registry.experiment to another name.")
    return str(found.experiment_id)


def run_url(uri: str, experiment: str, run_id: str) -> str | None:
    """Return the address of the run for a browser; None without a server."""
    return f"{browser_root(uri)}/#/experiments/{experiment}/runs/{run_id}{_AS_TRAINING}" if browser_root(uri) else None


def version_url(uri: str, model: str, version: int) -> str | None:
    return f"{browser_root(uri)}/#/models/{model}/versions/{version}{_AS_TRAINING}" if browser_root(uri) else None


def browser_root(uri: str) -> str | None:
    """Return the server's address for people: TALARIA_MLFLOW_URL if set, else the server's own."""
    root = os.environ.get("TALARIA_MLFLOW_URL") or (public_uri(uri) if uri.startswith("http") else "")
    return root.rstrip("/") or None
