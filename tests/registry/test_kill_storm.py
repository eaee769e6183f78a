"""What changes a store or a registry, killed at drawn moments: nothing is lost, and the next attempt finishes.

`make test-storm` kills 200 times; STORM_SEED draws other moments. Each killed process is forked from one that has imported
everything, so that the moments fall into the work.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talaria.common.files import digest
from talaria.config.evaluation_settings import Promote
from talaria.registry import versions as registry
from talaria.registry.promotion.promote import promote
from talaria.registry.promotion.rollback import rollback
from talaria.registry.versions import PREVIOUS, find_model, local_folder, location_of, search_versions, tags_of
from talaria.store.prune import prune
from talaria.store.store import Output, Store
from talaria.store.verify import verify
from talaria.tracking.mlflow_client import connect
from talaria.tracking.mlflow_database import ensure_database
from talaria.tracking.tag_record import packed

pytestmark = [pytest.mark.storm, pytest.mark.timeout(3600)]
KILLS = 50
"""Of each kind."""
PLAIN = Promote(rule="plain")  # these versions have a loss, and no results per item
PRELOADED = [
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "talaria.registry.promotion.promote",
    "talaria.registry.promotion.rollback",
    "talaria.store.prune",
]


def nothing() -> None:
    pass


class Killer:
    """Runs something in a process and kills it at a drawn moment within the time that it takes."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*PRELOADED, __name__])
        self.draw = random.Random(int(os.environ.get("STORM_SEED", "0")))
        self.within = self.undisturbed(nothing)  # starts the process that the others are forked from

    def undisturbed(self, work: Callable[..., Any], *args: Any) -> float:
        """Seconds that the work takes."""
        began = time.monotonic()
        process = self.context.Process(target=work, args=args)
        process.start()
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - began

    def storm(self, takes: float) -> Iterator[int]:
        """Count attempts until KILLS of them were killed before they were done. `takes`: seconds of an undisturbed one."""
        self.within, self.killed = takes, 0
        for attempt in range(20 * KILLS):
            if self.killed == KILLS:
                return
            yield attempt
        pytest.fail(f"only {self.killed} of {20 * KILLS} attempts were killed before they were done")

    def kill(self, work: Callable[..., Any], *args: Any) -> bool:
        """Return whether the work was killed before it was done. What it takes is learnt from each attempt: loads change."""
        process, began = self.context.Process(target=work, args=args), time.monotonic()
        process.start()
        process.join(self.draw.uniform(0, self.within))
        if process.exitcode is None:
            process.kill()
            process.join()
        if process.exitcode == 0:
            self.within = min(self.within, time.monotonic() - began)
            return False
        self.killed += 1
        self.within *= 1.02
        return True


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db?timeout=60"


def fill(folder: Path) -> dict[str, Any]:
    for number in range(10):
        (folder / f"part-{number}").write_bytes(os.urandom(4096))
    return {"parts": 10}


def make(store: Store, number: int) -> Output:
    described = {"settings": {}, "inputs": {}, "outside": None}
    return store.run("tokenize", digest(number), fill, described_by=described)


def prune_all(root: Path) -> None:
    prune(Store(root), 0)


def test_store_prune(killer: Killer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    keys = range(6)

    def refill() -> None:
        for number in keys:
            assert make(store, number).path.is_dir(), "a key can be made again, whatever was killed"

    refill()
    for _ in killer.storm(killer.undisturbed(prune_all, store.root)):
        refill()
        killer.kill(prune_all, store.root)
        assert list(verify(store)) == []
    refill()
    killer.undisturbed(prune_all, store.root)
    assert list(store.places()) == []
    assert [path for path in (store.root / ".work").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def create(path: Path) -> None:
    ensure_database(path, (path.parent / "artifacts").as_uri())


def test_creation_of_mlflows_database(killer: Killer, tmp_path: Path) -> None:
    database = tmp_path / "first" / "mlflow.db"
    database.parent.mkdir()
    for attempt in killer.storm(killer.undisturbed(create, tmp_path / "mlflow.db")):
        if killer.kill(create, database) and killer.killed < KILLS:
            continue  # the next goes on from what is left
        create(database)
        client = connect(f"sqlite:///{database}")
        client.create_run(client.create_experiment("usable"))
        assert [path.name for path in database.parent.iterdir() if path.name.startswith(".")] == [], "no half is left behind"
        database = tmp_path / str(attempt) / "mlflow.db"
        database.parent.mkdir()


def add(uri: str, model: str, loss: float) -> int:
    """A version whose files are in a folder of its own, as registration makes them."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(model)
    run = client.create_run(experiment.experiment_id)
    made = client.create_logged_model(experiment.experiment_id, model, run.info.run_id, {})
    folder = local_folder(made.artifact_location)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(str(loss))
    tags = {registry.CANDIDATE: "true", registry.LOSS: str(loss), registry.BASE_LOSS: "9", registry.HELDOUT: "same"}
    tags |= {registry.TRAIN_KEY: digest(loss), registry.MODEL_ID: made.model_id}
    version = client.create_model_version(model, made.artifact_location, run.info.run_id, packed(tags), model_id=made.model_id)
    return int(version.version)


def new_model(uri: str, name: str) -> None:
    client = connect(uri)
    client.create_registered_model(name)
    client.create_experiment(name)


def ask_the_gate(uri: str, model: str, version: int) -> None:
    promote(model, version, settings=PLAIN, uri=uri)


def test_promotion_and_rollback(killer: Killer, uri: str) -> None:
    new_model(uri, "gate")
    assert promote("gate", add(uri, "gate", 8.0), settings=PLAIN, uri=uri)["promoted"]
    takes = killer.undisturbed(ask_the_gate, uri, "gate", add(uri, "gate", 7.9))
    client = connect(uri)
    for number in killer.storm(takes):
        before, loss = find_model(client, "gate")["champion"], 7.5 - number / 1000
        candidate = add(uri, "gate", loss)
        killer.kill(ask_the_gate, uri, "gate", candidate)
        assert find_model(client, "gate")["champion"] in (before, candidate)
        assert promote("gate", candidate, settings=PLAIN, uri=uri)["champion"] == candidate
        version = client.get_model_version("gate", str(candidate))
        assert tags_of(version)[PREVIOUS] == str(before)
        assert version.description.count("\n- ") == 1, "decided and told once"
    assert rollback("gate", reason="storm", who="storm", uri=uri)["champion"] == before


def prune_model(uri: str, model: str) -> None:
    registry.prune(model, 1, uri=uri)


def test_prune_of_a_model(killer: Killer, uri: str) -> None:
    new_model(uri, "pruned")
    client = connect(uri)
    promote("pruned", add(uri, "pruned", 5.0), settings=PLAIN, uri=uri)
    for loss in (6.0, 6.1, 6.2):
        add(uri, "pruned", loss)
    takes = killer.undisturbed(prune_model, uri, "pruned")
    for number in killer.storm(takes):
        for more in (0.0, 0.01):
            add(uri, "pruned", 6.0 + number + more)
        killer.kill(prune_model, uri, "pruned")
        for version in search_versions(client, "pruned"):
            folder = local_folder(location_of(client, version))
            assert folder is not None
            assert (folder / "model.safetensors").is_file(), f"version {version.version} lost its files"
    registry.prune("pruned", 1, uri=uri)
    assert len(search_versions(client, "pruned")) == 2
    assert find_model(client, "pruned")["champion"] == 1
