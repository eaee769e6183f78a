"""Register a trained model as an Airflow task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context
from talaria.common.errors import UserError
from talaria.config import load as settings
from talaria.store.store import Store

from talaria_airflow.operators import links
from talaria_airflow.operators.lineage import EmitsLineage, of_version
from talaria_airflow.operators.stage import as_task_failure, given, given_output, name_user, store_root
from talaria_airflow.operators.xcom import storable

BY_DATA = "talaria-model-by-data"
"""Asset whose events have the data's revision as partition key. One of its own: an event with a key starts no DAG whose schedule
is the asset without partitions."""


class RegisterOperator(EmitsLineage, BaseOperator):
    """Makes every kept checkpoint a model version and returns what `registry.register` tells.

    :param config: the resolved configuration, a dict.
    :param inputs: stage -> what that stage's task returned; train, tokenize, evaluate and the rest for lineage.
    """

    template_fields: Sequence[str] = ("config", "inputs")
    template_fields_renderers: ClassVar[dict[str, str]] = {"config": "json", "inputs": "json"}
    operator_extra_links = (links.ModelVersionLink(), links.MlflowRunLink())
    ui_color = "#e0f2e0"

    def __init__(self, *, config: Mapping[str, Any], inputs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = "register"
        self.config = config
        self.inputs = inputs

    def execute(self, context: Context) -> dict[str, Any]:
        from talaria.registry.register import register
        from talaria.tracking.mlflow_client import public_uri, tracking_uri

        name_user(context)
        with as_task_failure():
            store = Store(store_root())
            folders = self._folders(store)
            uri = tracking_uri(store.root)
            registered = register(settings.parse(given("configure", self.config), "configuration"), folders, uri=uri)
        self.log.info("%s: the candidate is version %s", registered["model"], registered["candidate"])
        links.show(context, links.ModelVersionLink, registered["model_url"] or "")
        links.show(context, links.MlflowRunLink, registered["run_url"] or "")
        versions = [entry["version"] for entry in registered["versions"]]
        self.made = [of_version(public_uri(uri), registered["model"], version) for version in versions]
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            event.extra = {key: registered[key] for key in ("model", "candidate", "train_key", "data")}
            if asset.name == BY_DATA and registered["data"]:
                event.add_partitions(registered["data"])
        return storable(registered)

    def _folders(self, store: Store) -> dict[str, Path]:
        """Return the folders of `inputs`; a report that is gone is left out, since a version needs none."""
        found: dict[str, Path] = {}
        for name, value in self.inputs.items():
            try:
                found[name] = given_output(store, name, value).path
            except UserError as error:
                if name != "report":
                    raise
                self.log.warning("The versions get no data report: %s", error)
        return found
