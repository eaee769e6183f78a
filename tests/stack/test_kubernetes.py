"""deploy/helm-values.yaml and deploy/kubernetes.yaml: they say what docker-compose.yaml says, where both speak."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from talaria.config import schema as config
from talaria.devstack import compose_env
from talaria.serving.api.server import STOP_SECONDS

from tests.stack.compose import load_compose
from tests.stack.engine import REPOSITORY

DOCS = (REPOSITORY / "docs/deploy.md").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    values = compose_env.fresh_secrets() | compose_env.placement(has_gpu=True)
    return dict(load_compose(REPOSITORY / "docker-compose.yaml", values)["services"])


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "deploy/helm-values.yaml").read_text()))


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Any]:
    documents = yaml.safe_load_all((REPOSITORY / "deploy/kubernetes.yaml").read_text())
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def container(objects: dict[tuple[str, str], Any], name: str) -> dict[str, Any]:
    """The pod of a Deployment, and its container, as one."""
    pod = objects["Deployment", name]["spec"]["template"]["spec"]
    return {**pod, **pod["containers"][0], "pod": pod["securityContext"]}


@pytest.fixture(scope="module")
def mlflow(objects: dict[tuple[str, str], Any]) -> dict[str, Any]:
    assert {name for kind, name in objects if kind == "PersistentVolumeClaim"} == {"talaria", "airflow-logs"}
    assert objects["Service", "mlflow"]["spec"]["ports"] == [{"port": 5000}]
    return container(objects, "mlflow")


def test_every_part_runs_the_command_that_compose_gives_it(values: dict[str, Any], services: dict[str, Any]) -> None:
    (gpu,) = values["workers"]["celery"]["sets"]
    parts = {
        "init": values["migrateDatabaseJob"],
        "api-server": values["apiServer"],
        "scheduler": values["scheduler"],
        "dag-processor": values["dagProcessor"],
        "triggerer": values["triggerer"],
        "worker": values["workers"]["celery"],
        "worker-gpu": gpu,
    }
    for name, part in parts.items():
        assert part["args"] == services[name]["command"], name
    assert values["executor"] == services["worker"]["environment"]["AIRFLOW__CORE__EXECUTOR"]


def test_the_settings_come_from_compose_alone(values: dict[str, Any], services: dict[str, Any]) -> None:
    """The Secret is compose's environment: names here are names there, and what the chart would set over it is off."""
    environment = services["worker"]["environment"]
    assert {entry["name"] for entry in values["env"]} < set(environment)
    assert yaml.safe_load(values["extraEnvFrom"]) == [{"secretRef": {"name": "talaria"}}]
    assert not any(values["enableBuiltInSecretEnvVars"].values())
    assert set(values["enableBuiltInSecretEnvVars"]) - {"AIRFLOW_CONN_AIRFLOW_DB"} <= set(environment)
    only_init = set(services["init"]["environment"]) - set(environment)
    assert {entry["name"] for entry in values["migrateDatabaseJob"]["env"]} == only_init
    for name in ("talaria", "talaria-users", "talaria-mlflow", "talaria-serve"):
        assert f"create secret generic {name} " in DOCS


def test_what_a_deployment_chooses_reaches_every_service_that_reads_it() -> None:
    chosen = {
        "TALARIA_WEBHOOK": "https://chat.example/hook",
        "TALARIA_ALLOW_CUSTOM_CODE": "1",
        "OPENLINEAGE_TRANSPORT": '{"type": "console"}',
        "STATSD_ON": "True",
        "OTEL_ON": "True",
    }
    of_airflow = {f"AIRFLOW__METRICS__{name}": name for name in ("STATSD_ON", "OTEL_ON")}
    of_airflow["AIRFLOW__OPENLINEAGE__TRANSPORT"] = "OPENLINEAGE_TRANSPORT"
    secrets = compose_env.fresh_secrets() | compose_env.placement(has_gpu=True)
    for values, is_chosen in (({}, False), (chosen, True)):
        services = load_compose(REPOSITORY / "docker-compose.yaml", secrets | values)["services"]
        for service in ("scheduler", "dag-processor", "triggerer", "worker", "worker-gpu"):
            environment = services[service]["environment"]
            for name in ("TALARIA_WEBHOOK", "TALARIA_ALLOW_CUSTOM_CODE", *of_airflow):
                off = environment[name] in ("", "False")
                assert off is not is_chosen, (service, name)
                assert off or environment[name] == chosen[of_airflow.get(name, name)]


def test_volumes_users_and_grace_are_those_of_compose(values: dict[str, Any], services: dict[str, Any]) -> None:
    claims = {entry["name"]: entry["persistentVolumeClaim"]["claimName"] for entry in values["volumes"]}
    mounts = {f"{claims[entry['name']]}:{entry['mountPath']}" for entry in values["volumeMounts"]}
    assert mounts == set(services["worker"]["volumes"])
    assert f"{values['uid']}:{values['gid']}" == services["worker"]["user"]
    workers = values["workers"]["celery"]
    assert workers["terminationGracePeriodSeconds"] > config.Train().stop_grace
    (shm,) = workers["sets"][0]["extraVolumes"]
    assert shm["emptyDir"]["sizeLimit"].removesuffix("i").lower() == services["worker-gpu"]["shm_size"]


def test_probes_ask_what_compose_asks(values: dict[str, Any], services: dict[str, Any]) -> None:
    assert values["scheduler"]["livenessProbe"]["command"] == services["scheduler"]["healthcheck"]["test"][1:]
    assert values["scheduler"]["startupProbe"] == values["scheduler"]["livenessProbe"]
    for part, name in (("dagProcessor", "dag-processor"), ("triggerer", "triggerer")):
        (job,) = re.findall(r"--job-type (\w+)", services[name]["healthcheck"]["test"][1])
        assert job in values[part]["livenessProbe"]["command"]
    compose, probe = services["worker"]["healthcheck"]["test"][1], values["workers"]["celery"]["livenessProbe"]["command"][-1]
    assert probe.split("@")[0] == compose.split("@")[0]


def test_mlflow_is_the_service_of_compose(mlflow: dict[str, Any], values: dict[str, Any], services: dict[str, Any]) -> None:
    service = services["mlflow"]
    image = values["images"]["airflow"]
    assert mlflow["image"] == f"{image['repository']}:{image['tag']}"
    assert mlflow["args"] == service["command"]
    assert mlflow["readinessProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:]
    assert f"{mlflow['pod']['runAsUser']}:{mlflow['pod']['runAsGroup']}" == service["user"]
    assert mlflow["securityContext"]["readOnlyRootFilesystem"] is service["read_only"]
    assert "talaria:/var/lib/talaria" in service["volumes"]
    assert {entry["mountPath"] for entry in mlflow["volumeMounts"]} == {"/var/lib/talaria", "/tmp"}


def test_the_served_champion_is_off_and_as_compose_has_it(
    objects: dict[tuple[str, str], Any], values: dict[str, Any], services: dict[str, Any]
) -> None:
    service, served = services["serve"], container(objects, "serve")
    assert service["profiles"] == ["serve"]
    assert objects["Deployment", "serve"]["spec"]["replicas"] == 0
    assert served["image"] == f"{values['images']['airflow']['repository']}:{values['images']['airflow']['tag']}"
    assert served["args"] == service["command"]
    for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
        assert served[probe]["exec"]["command"] == service["healthcheck"]["test"][1:]
        assert served[probe]["timeoutSeconds"] == int(service["healthcheck"]["timeout"].removesuffix("s"))
    assert f"{served['pod']['runAsUser']}:{served['pod']['runAsGroup']}" == service["user"]
    assert served["securityContext"]["readOnlyRootFilesystem"] is service["read_only"]
    assert service["volumes"] == ["talaria:/var/lib/talaria:ro"]
    assert {entry["mountPath"]: entry.get("readOnly", False) for entry in served["volumeMounts"]} == {
        "/var/lib/talaria": True,
        "/tmp": False,
    }
    assert served["terminationGracePeriodSeconds"] == int(service["stop_grace_period"].removesuffix("s")) > STOP_SECONDS


def test_the_airflow_that_the_chart_is_told_is_the_one_of_the_image(values: dict[str, Any]) -> None:
    assert f'"apache-airflow=={values["airflowVersion"]}"' in (REPOSITORY / "pyproject.toml").read_text()
