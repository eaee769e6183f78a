"""What a task read and made, as OpenLineage's provider asks for it. Nothing of the provider is imported unless it asks.

The provider drops assets that have no address of their own, as ours have none, and those of s3:// without another provider
(findings/openlineage_assets.sh), so data sets are told as such: a folder, a repository on the hub, a model's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from talaria.common.redact import scrub
from talaria.config import load as settings
from talaria.config.data_settings import Download
from talaria.config.schema import Config

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

FILE, HUB = "file", "https://huggingface.co"


@dataclass(frozen=True)
class DataSet:
    """A name that other tools know a data set by, and which state of it was read or made."""

    namespace: str
    name: str
    version: str | None = None


def of_output(value: Mapping[str, Any]) -> DataSet:
    """Return a folder of the store as what a task returns tells it."""
    return DataSet(FILE, str(value["path"]), str(value["key"]))


def sources(stage: str, config: Config) -> list[DataSet]:
    """Return what a stage reads from outside the store."""
    if stage == "download":
        return [found for download in config.downloads if (found := _source(download))]
    if stage == "base" and config.base.source == "hub":
        return [DataSet(HUB, config.base.repo, config.base.revision)]
    if stage == "base" and config.base.path:
        return [DataSet(FILE, str(config.base.path.absolute()))]
    return []


def _source(download: Download) -> DataSet | None:
    if download.source == "hub":
        return DataSet(HUB, f"datasets/{download.repo}", download.revision)
    return DataSet(FILE, str(download.path.absolute())) if download.path else None


class EmitsLineage:
    """An operator whose inputs and outputs OpenLineage's provider is told. `config` and `inputs` are rendered by then."""

    stage: str
    config: Any
    inputs: Mapping[str, Any]
    made: Iterable[DataSet] = ()
    """What the task has made, from `execute`."""

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        return self._lineage(())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        return self._lineage(self.made)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        return self._lineage(())

    def _lineage(self, made: Iterable[DataSet]) -> OperatorLineage[Any, Any]:
        from airflow.providers.openlineage.extractors import OperatorLineage

        config = settings.parse(self.config, "configuration") if isinstance(self.config, Mapping) else None
        read = [of_output(value) for value in self.inputs.values() if isinstance(value, Mapping) and "path" in value]
        outside = sources(self.stage, config) if config else []
        return OperatorLineage(inputs=[_told(one) for one in (*outside, *read)], outputs=[_told(one) for one in made])


def _told(found: DataSet) -> Any:
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    version = found.version
    facets: dict[str, Any] = (
        {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)} if version else {}
    )
    return Dataset(namespace=found.namespace, name=scrub(found.name), facets=facets)


def of_version(address: str, model: str, version: int) -> DataSet:
    """Return a registered version: MLflow's address as the namespace."""
    return DataSet(address, f"models:/{model}", str(version))
