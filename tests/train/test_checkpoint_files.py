"""The writing process, the reader and the block between them: any split of a tensor is read into any other."""

from __future__ import annotations

import gc
import json
import mmap
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from talaria.config.schema import Config
from talaria.config.train_settings import Train
from talaria.runs.folder import DYING, HOST_MEMORY
from talaria.train import __main__ as program
from talaria.train.checkpoint import host_block
from talaria.train.checkpoint.host_block import PAGE, HostBlock, fits, make_pages, pieces
from talaria.train.checkpoint.reader import read
from talaria.train.checkpoint.staging import Part
from talaria.train.checkpoint.writer_process import WriteFailed, WriterProcess
from talaria.train.distributed import process_group
from talaria.train.optim.span import ParamSpan
from talaria.train.telemetry.watchdog import StopSignal
from talaria.train.train_state import TrainJob

WHOLE = torch.randn(1000)


def written(folder: Path, rank: int, start: int, stop: int) -> dict[str, dict[str, object]]:
    """What rank `rank` writes of WHOLE."""
    block = HostBlock(4 * (stop - start), folder=None, name="test")
    block.view(0, stop - start, torch.float32).copy_(WHOLE[start:stop])
    writer = WriterProcess([block], rank)
    tensor = {"name": "param.x", "dtype": "F32", "shape": [stop - start], "place": start, "start": 0, "bytes": 4 * (stop - start)}
    try:
        return writer.write(folder, [[tensor]])
    finally:
        writer.close()


def part(start: int, stop: int) -> Part:
    return Part("param.x", "param", 0, torch.float32, ParamSpan(start, stop, len(WHOLE)), 0)


@pytest.mark.parametrize("edges", [(0, 1000), (0, 500, 1000), (0, 333, 334, 1000)])
def test_what_some_ranks_wrote_any_others_read(tmp_path: Path, edges: tuple[int, ...]) -> None:
    for rank, (start, stop) in enumerate(pairwise(edges)):
        written(tmp_path, rank, start, stop)
    for start, stop in ((0, 1000), (0, 250), (250, 750), (333, 334), (999, 1000)):
        target = torch.zeros(stop - start)
        read(tmp_path, [(part(start, stop), target)])
        assert torch.equal(target, WHOLE[start:stop])


def test_the_files_are_safetensors_with_the_digests_that_were_told(tmp_path: Path) -> None:
    from talaria.common.files import file_digest

    files = written(tmp_path, 3, 100, 300)
    assert list(files) == ["rank-00003-000.safetensors"]
    path = tmp_path / "rank-00003-000.safetensors"
    assert files[path.name] == {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("param.x"), WHOLE[100:300])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    written(tmp_path, 0, 0, 400)
    with pytest.raises(ValueError, match=r"holds 150 of the 500 elements of param\.x"):
        read(tmp_path, [(part(250, 750), torch.zeros(500))])


def test_a_writer_that_cannot_write_says_why_and_one_that_was_killed_too(tmp_path: Path) -> None:
    block = HostBlock(4, folder=None, name="test")
    writer = WriterProcess([block], 0)
    tensor = {"name": "x", "dtype": "F32", "shape": [1], "place": 0, "start": 0, "bytes": 4}
    with pytest.raises(WriteFailed, match="FileNotFoundError"):
        writer.write(tmp_path / "missing", [[tensor]])
    assert writer.write(tmp_path, [[tensor]])  # it lives on
    os.kill(writer.pid, signal.SIGTERM)
    assert writer.write(tmp_path, [[tensor]])  # a rank that is told to stop still saves
    os.kill(writer.pid, signal.SIGKILL)
    with pytest.raises(WriteFailed, match="exit code -9"):
        writer.write(tmp_path, [[tensor]])
    writer.close()


def test_a_block_in_a_folder_outlives_its_process(tmp_path: Path) -> None:
    first = HostBlock(64, folder=tmp_path, name="rank-0")
    assert not first.kept
    first.bytes.fill_(7)
    again = HostBlock(64, folder=tmp_path, name="rank-0")
    assert again.kept
    assert again.bytes.tolist() == [7] * 64
    assert not HostBlock(128, folder=tmp_path, name="rank-0").kept  # another size: another state


def test_a_second_block_is_wanted_where_there_is_room_for_those_of_all_ranks(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert fits(tmp_path / "rank-0-again", 1 << 20, 3 << 20)
    assert not fits(tmp_path / "rank-0-again", 1 << 20, free)
    HostBlock(1 << 20, folder=tmp_path, name="rank-0-again")
    assert fits(tmp_path / "rank-0-again", 1 << 20, free)  # it is there


def test_memory_is_made_without_changing_it_and_locked_where_no_copy_is_cut() -> None:
    block = HostBlock(10 * PAGE, folder=None, name="test")
    block.bytes[:3] = 5
    make_pages(block.bytes)
    assert block.bytes.sum() == 15
    large = 300 << 20
    starts = [0, PAGE, large, large + PAGE, 2 * large]
    assert list(pieces(starts, 2 * large + 1)) == [(0, large), (large, 2 * large), (2 * large, 2 * large + 1)]
    assert list(pieces(starts, 2 * large)) == [(0, large), (large, 2 * large)]
    assert list(pieces([0], 1)) == [(0, 1)]


def test_locked_memory_is_unlocked_before_it_is_unmapped_and_not_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: set[int] = set()

    def lock(start: int, size: int, flags: int) -> int:
        locked.add(start)
        return 0

    runtime = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=locked.remove)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(host_block, "_AT_ONCE", PAGE)
    block = HostBlock(3 * PAGE, folder=None, name="test", device=torch.device("cuda", 0), starts=[PAGE, 2 * PAGE])
    block.lock()
    block.ready()
    fd, first, used = block.fd, block.bytes.data_ptr(), block.view(PAGE, 2, torch.float32)
    assert block.pinned
    assert not block.refused
    assert locked == {first, first + PAGE, first + 2 * PAGE}
    del block
    gc.collect()
    assert len(locked) == 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    used.fill_(1.0)
    del used
    gc.collect()
    assert not locked
    runtime.cudaHostRegister = lambda start, size, flags: 1 if locked else lock(start, size, flags)  # the second piece is refused
    block = HostBlock(2 * PAGE, folder=None, name="test", device=torch.device("cuda", 0), starts=[PAGE])
    block.lock()
    block.ready()
    assert (len(locked), block.pinned, block.refused) == (1, False, True)


def test_a_rank_in_waiting_locks_the_newest_snapshot_while_the_former_rank_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked = tmp_path / "go-1", list[int]()

    def lock(start: int, size: int, flags: int) -> int:
        asked.append(size)
        go.touch()
        return 0

    runtime = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=lambda _: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(process_group, "choose_device", lambda local_rank: torch.device("cuda", local_rank))
    monkeypatch.setattr(program, "_import_for", lambda job: None)
    monkeypatch.setenv(HOST_MEMORY, str(tmp_path))
    for name, step in (("rank-0", 7), ("rank-0-again", 9), ("rank-1", 10)):
        HostBlock(2 * PAGE, folder=tmp_path, name=name).bytes.fill_(step)
        (tmp_path / f"{name}.json").write_text(json.dumps({"progress": {"step": step}}))
    go.with_suffix(DYING).touch()
    job = TrainJob(Config(name="small", train=Train(num_processes=1)), tmp_path, tmp_path, tmp_path)
    assert program._waited(go, job, StopSignal())
    assert asked == [2 * PAGE]
    device = torch.device("cuda", 0)
    block = HostBlock(2 * PAGE, folder=tmp_path, name="rank-0-again", device=device, starts=[PAGE])
    block.lock()
    block.ready()
    assert block.pinned
    assert block.bytes.tolist() == [9] * 2 * PAGE
    assert asked == [2 * PAGE]
    other = HostBlock(2 * PAGE, folder=tmp_path, name="rank-0", device=device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    other.lock()
    other.ready()
    assert asked == [2 * PAGE] * 2


@pytest.mark.parametrize("start", [HostBlock.want, HostBlock.ready])
def test_a_second_block_is_not_locked_before_it_is_wanted(
    start: Callable[[HostBlock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stops the process while it locks: ranks that are started again make their first step before."""
    runtime = SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda _: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    first, second = (HostBlock(PAGE, folder=None, name="test", device=torch.device("cuda", 0)) for _ in range(2))
    first.lock()
    second.lock(after=first)
    first.ready()
    assert first.pinned
    assert not second.made
    start(second)
    second.ready()
    assert second.pinned


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's driver locks memory")
def test_memory_that_was_locked_can_be_locked_and_copied_again() -> None:
    """An address that is mapped again after a block has gone is not taken for locked memory."""
    for _ in range(3):
        block = HostBlock(64 << 20, folder=None, name="test", device=torch.device("cuda", 0))
        block.lock()
        block.ready()
        assert block.pinned
        block.bytes.fill_(3)
        del block
        with mmap.mmap(-1, 64 << 20) as again:
            other = torch.frombuffer(again, dtype=torch.uint8)
            assert int(other.cuda().sum()) == 0
            del other
