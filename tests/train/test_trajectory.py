"""One trajectory, however the work is divided."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.transport import PeerBlock, PeerCopies
from talaria.train.kernels import attention, linear
from talaria.train.kernels.decoder_layer import Saved
from talaria.train.model.causal_lm import CausalLM
from talaria.train.train_state import TrainJob
from talaria.train.trainer import Trainer

from tests.train import ranks

STEPS = 13
"""The first epoch ends within step 11."""
LAYOUTS = [(1, "replicate"), (2, "replicate"), (2, "shard"), (3, "replicate"), (3, "shard"), (4, "hybrid")]


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from tests.support import tiny_pipeline

    config = tiny_pipeline.config(train={"epochs": 3, "max_steps": STEPS, "max_tokens_per_device": 2048})
    output = tmp_path_factory.mktemp("reference")
    ranks.run(TrainJob(config, folders["tokenize"], folders["base"], output))
    return ranks.steps(output)


# Every pair of two factors' values comes up; the whole product passes as well, in four times as long.
CASES = [
    (*layout, budget, ("off", "full")[(i + j) % 2], (1, 4)[(i // 2 + j) % 2])
    for i, layout in enumerate(LAYOUTS)
    for j, budget in enumerate((192, 2048))
]


def test_cases_cover_every_pair() -> None:
    values = [set(column) for column in zip(*CASES, strict=True)]
    for one, other in itertools.combinations(range(2, 5), 2):
        seen = {(case[one], case[other]) for case in CASES}
        assert seen == set(itertools.product(values[one], values[other]))
    for factor in range(2, 5):
        assert {(case[:2], case[factor]) for case in CASES} == set(itertools.product(LAYOUTS, values[factor]))


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize(("size", "sharding", "budget", "recompute", "prefetch"), CASES)
def test_losses_do_not_depend_on_how_the_work_is_divided(
    job: Callable[..., TrainJob],
    reference: list[dict[str, Any]],
    size: int,
    sharding: str,
    budget: int,
    recompute: str,
    prefetch: int,
    tmp_path: Path,
) -> None:
    settings = {"max_tokens_per_device": budget, "activation_checkpointing": recompute, "prefetch": prefetch}
    divided = job(sharding=sharding, shard_size=2 if sharding == "hybrid" else 0, epochs=3, max_steps=STEPS, **settings)
    ranks.run(divided, size, by_copies(tmp_path) if sharding == "replicate" and budget == 192 else None)
    assert_same(ranks.steps(divided.output), reference)


def test_weights_kept_in_eight_bits_follow_what_other_ranks_update(
    job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linear, "MANY", 1)  # forked ranks inherit these
    monkeypatch.setattr(linear, "NARROWEST", 1)
    losses = []
    for size in (1, 2):
        made = job(str(size), epochs=3, max_steps=5, lr=1e-2, precision="mixed", fp8=True, sharding="replicate")
        ranks.run(made, size, by_copies(tmp_path))
        losses.append([step["loss"] for step in ranks.steps(made.output)])
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def by_copies(folder: Path) -> Callable[[int], None]:
    """For `before`: ranks read each other's memory, as GPUs of one machine do, through files in `folder`, in small pieces."""
    folder.mkdir(exist_ok=True)

    def transport(group: ProcessGroup) -> PeerCopies:
        numbers = itertools.count()

        def make(count: int, dtype: torch.dtype) -> PeerBlock:
            number = next(numbers)
            paths = [folder / f"{number}-{rank}" for rank in range(group.size)]
            own = torch.from_file(str(paths[group.rank]), shared=True, size=count, dtype=dtype)
            dist.barrier()
            every = [torch.from_file(str(path), shared=True, size=count, dtype=dtype) for path in paths]
            return PeerBlock([own if rank == group.rank else theirs for rank, theirs in enumerate(every)], dist.barrier)

        return PeerCopies(group, make)

    def before(me: int) -> None:
        parallel.choose_transport = transport
        PeerCopies.landing = 5000

    return before


@pytest.mark.usefixtures("no_room_for_whole_weights")
def test_layers_that_share_two_places_are_trained_as_whole_ones(job: Callable[..., TrainJob], tmp_path: Path) -> None:
    """Nothing before the first layer is trained, so that no hook says when its gradients are through."""
    settings = {"precision": "mixed", "lr": 1e-2, "epochs": 3, "max_steps": 5, "max_tokens_per_device": 192}
    two, four = (by_copies(tmp_path / name) for name in ("two", "four"))
    runs: list[tuple[str, int, Any]] = [("replicate", 2, None), ("shard", 2, None), ("shard", 2, two), ("shard", 4, four)]
    made = []
    for number, (sharding, size, before) in enumerate(runs):
        made.append(job(str(number), sharding=sharding, freeze=["*embed_tokens*"], **settings))
        ranks.run(made[-1], size, before)
    whole, ring, copied, by_four = (ranks.steps(run.output) for run in made)
    figures = [[(step["loss"], step["grad_norm"]) for step in steps] for steps in (ring, copied)]
    assert figures[0] == figures[1]
    assert [step["loss"] for step in by_four] == pytest.approx([step["loss"] for step in whole], rel=1e-3)
    assert [step["loss"] for step in ring] == pytest.approx([step["loss"] for step in whole], rel=1e-3)
    assert [step["grad_norm"] for step in ring] == pytest.approx([step["grad_norm"] for step in whole], rel=1e-2)
    assert whole[-1]["loss"] < 0.95 * whole[0]["loss"]


@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_ranks_that_read_each_others_memory_do_what_collectives_do(
    job: Callable[..., TrainJob], tmp_path: Path, offload: str
) -> None:
    """To the bit, stopped and resumed as well; what is frozen lies beside what ranks exchange."""
    kind = {"precision": "bf16"} if offload == "optimizer" else {"precision": "mixed", "freeze": ["*k_proj*"], "compare_every": 1}
    settings = {"offload": offload, "lr": 1e-2, "epochs": 3, "max_steps": 6, "max_tokens_per_device": 192, **kind}
    collected, copied = (job(name, **settings) for name in ("collected", "copied"))
    ranks.run(collected, 2)
    reads, stops = by_copies(tmp_path / "blocks"), ranks.at_step(3, 1, signal.SIGTERM)

    def before(me: int) -> None:
        reads(me)
        stops(me)

    if offload == "none":
        ranks.run(copied, 2, before)
        assert ranks.status(copied.output)["state"] == "preempted"
    ranks.run(copied, 2, reads)
    assert ranks.steps(copied.output) == ranks.steps(collected.output)
    weights = [load_file(run.output / "model" / "model.safetensors") for run in (collected, copied)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_model_that_no_rank_has_room_for_is_sharded(job: Callable[..., TrainJob], reference: list[dict[str, Any]]) -> None:
    divided = job(epochs=3, max_steps=STEPS, max_tokens_per_device=192)
    memory = {0: 10**9, 1: 1000}  # the ranks must agree, whatever their devices
    ranks.run(divided, 2, before=lambda rank: setattr(parallel, "device_memory", lambda device: memory[rank]))
    assert "1 x 2 (replicas x shards)" in ranks.events(divided.output, "start")[0]["message"]
    assert_same(ranks.steps(divided.output), reference)


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize(("size", "spread", "sharding"), [(2, 2, "replicate"), (4, 2, "shard")])
def test_ranks_that_share_the_tokens_of_conversations_change_nothing(
    job: Callable[..., TrainJob], reference: list[dict[str, Any]], tmp_path: Path, size: int, spread: int, sharding: str
) -> None:
    """Conversations have up to 192 tokens, and a rank takes 96."""
    settings = {"context_parallel_size": spread, "max_tokens_per_device": 96}
    divided = job(sharding=sharding, epochs=3, max_steps=STEPS, **settings)
    ranks.run(divided, size, by_copies(tmp_path) if sharding == "replicate" else None)
    assert_same(ranks.steps(divided.output), reference)


def test_ranks_that_share_tokens_save_the_same_of_them(job: Callable[..., TrainJob]) -> None:
    """Whatever their parts of the targets and their memory: making a layer again is a matter of both."""
    divided = job(max_steps=2, max_tokens_per_device=96, context_parallel_size=2)

    def before(me: int) -> None:
        def saved(self: CausalLM, tokens: int, targets: int) -> list[Saved]:
            if torch.is_grad_enabled():
                print("asked for", tokens, targets, self.context.least(7 + me, torch.device("cpu")))
            return [Saved.DEFAULT] * 2

        CausalLM.saved_per_layer = saved  # type: ignore[method-assign]

    ranks.run(divided, 2, before)
    logs = [(divided.output / f"rank-{rank}.log").read_text().splitlines() for rank in range(2)]
    asked = [[line for line in log if line.startswith("asked for")] for log in logs]
    assert asked[0] == asked[1]
    assert all(line.endswith(" 7") for line in asked[0])


def assert_same(found: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert len(found) == STEPS
    for step, expected in zip(found, reference, strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        for exact in ("step", "epoch", "rows_checksum", "lr", "tokens", "supervised_tokens"):
            assert step[exact] == expected[exact]


def test_two_runs_of_two_threads_are_equal_to_the_bit(job: Callable[..., TrainJob]) -> None:
    """Micro-batches are large enough that PyTorch gives a part of them to the second thread."""
    runs = []
    for name in ("one", "two"):
        run = job(name, global_batch=160, max_tokens_per_device=4096, epochs=4, max_steps=4)
        ranks.run(run, before=lambda rank: torch.set_num_threads(2))
        runs.append([(step["loss"], step["grad_norm"]) for step in ranks.steps(run.output)])
    assert runs[0] == runs[1]


def test_warming_up_changes_nothing(job: Callable[..., TrainJob]) -> None:
    plain = job(max_steps=3)
    warmed = replace(plain, output=plain.output.with_name("warmed"))
    ranks.run(plain, 2)

    def before(me: int) -> None:
        Trainer._warms_up = lambda self: True  # type: ignore[method-assign]
        attention.build_ahead = lambda count, longest, features: print(f"built for {count} of {longest}")

    ranks.run(warmed, 2, before)
    assert "built for " in (warmed.output / "rank-0.log").read_text()
    assert ranks.steps(warmed.output) == ranks.steps(plain.output)
