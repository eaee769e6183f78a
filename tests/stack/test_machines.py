"""Two machines in front of one store: a second worker joins and the parts of a tokenisation are shared out."""

from __future__ import annotations

import pytest

from tests.stack.deployment import Deployment

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
PARTS = 8
"""More than one worker takes at once: two that it runs and two that it has reserved."""


def test_two_workers_share_a_tokenisation(deployment: Deployment) -> None:
    deployment.engine.add("worker-2", "worker")
    deployment.engine.up("worker-2")
    try:
        shards = {"download.rows": 600, "tokenize.shards": PARTS, "tokenize.shard_rows": 50, "train.max_steps": 4}
        run_id = deployment.train("shared", **shards)
        deployment.finished(run_id)
        tasks = deployment.airflow("viewer").tasks("sft", run_id)
        parts = [task for task in tasks if task["task_id"] == "data.tokenize_part"]
        assert len(parts) == PARTS
        assert {part["hostname"] for part in parts} == {"worker", "worker-2"}
        assert {part["try_number"] for part in parts} == {1}
        assert len(deployment.versions("shared")) == 1
    finally:
        deployment.engine.stop("worker-2")
