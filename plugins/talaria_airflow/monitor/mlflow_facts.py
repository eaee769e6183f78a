"""Ask MLflow about a run over its REST API, because importing MLflow would cost the api-server seconds and threads.

Answers are kept for a while, failures too. One thread asks at a time, and who comes meanwhile gets what is known so far: an
MLflow that is slow or away costs the page its links and holds up nothing else of the api-server.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from talaria.registry.versions import GATE, ROLLED_BACK
from talaria.tracking.mlflow_client import run_url, tracking_uri, version_url
from talaria.tracking.tag_record import unpacked

KEPT_SECONDS = 30.0
TIMEOUT_SECONDS = 3.0
_NOTHING: dict[str, Any] = {"run_url": None, "versions": [], "answers": None, "decision": [], "problem": None}
_EVALUATED = "talaria.key.evaluate"


class MlflowFacts:
    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}
        self._asking = threading.Lock()

    def facts(self, run_id: str | None) -> dict[str, Any]:
        """`run_url`; `versions`, newest first: name, version, url, aliases; `answers`: the address of their page, beside this
        one; `decision`: the gate's words and what followed, as pairs of a heading and a text; `problem`: why these lack, if
        they do."""
        if not run_id or not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
            return _NOTHING
        when, facts = self._kept.get(run_id, (-math.inf, _NOTHING))
        if time.monotonic() - when >= KEPT_SECONDS and self._asking.acquire(blocking=False):
            try:
                facts = _ask(tracking_uri(), run_id)
                self._kept[run_id] = time.monotonic(), facts
            finally:
                self._asking.release()
        return facts


def _ask(uri: str, run_id: str) -> dict[str, Any]:
    try:
        with httpx.Client(
            base_url=f"{uri.rstrip('/')}/api/2.0/mlflow/", auth=_login(), headers=_token(), timeout=TIMEOUT_SECONDS
        ) as client:
            run = _get(client, "runs/get", run_id=run_id)["run"]
            found = _get(client, "model-versions/search", filter=f"run_id='{run_id}'").get("model_versions", [])
            names = sorted({version["name"] for version in found})
            models = {name: _get(client, "registered-models/get", name=name)["registered_model"] for name in names}
    except (httpx.HTTPError, KeyError, ValueError) as error:
        return {**_NOTHING, "problem": f"MLflow does not answer ({type(error).__name__})."}
    found.sort(key=lambda version: -int(version["version"]))
    evaluations = [key for version in found if (key := _tags(version).get(_EVALUATED))]
    return {
        "run_url": run_url(uri, run["info"]["experiment_id"], run_id),
        "versions": [_version(uri, version, models[version["name"]]) for version in found],
        "answers": f"answers/{evaluations[0]}" if evaluations else None,
        "decision": [line for version in found for line in _decision(version)],
        "problem": None,
    }


def _version(uri: str, version: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    number = int(version["version"])
    aliases = [alias["alias"] for alias in model.get("aliases", []) if int(alias["version"]) == number]
    return {"name": version["name"], "version": number, "url": version_url(uri, version["name"], number), "aliases": aliases}


def _decision(version: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what the gate and people recorded on a version (pipeline/talaria/registry/promotion/promote.py)."""
    tags = _tags(version)
    if GATE in tags:
        yield f"Gate, version {version['version']}", f"{tags[GATE]}. {tags.get(f'{GATE}.reason', '')}".strip()
    if ROLLED_BACK in tags:
        who, why = (tags.get(f"{ROLLED_BACK}_{name}", "?") for name in ("by", "reason"))
        yield "Rolled back", f"by {who}: {why}"


def _tags(version: dict[str, Any]) -> dict[str, str]:
    return unpacked({tag["key"]: tag["value"] for tag in version.get("tags", [])})


def _get(client: httpx.Client, path: str, **query: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(path, params=query).raise_for_status().json()
    return answer


def _login() -> httpx.BasicAuth | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return httpx.BasicAuth(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _token() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
