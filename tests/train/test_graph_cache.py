"""Graphs on disk: one that is read is whole and the one that was asked for, there are not too many, and no disk is needed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from talaria.train.kernels import cudnn_attention, graph_cache

KEY = {"cudnn": [91900, "1.27.0"], "shape": {"heads": 2, "scale": 0.08838834764831845}, "longest": 512}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "talaria" / "attention"


def test_what_is_kept_is_read_under_its_own_key(folder: Path) -> None:
    graph = bytes(range(256)) * 3
    graph_cache.keep(KEY, [["q", 7]], graph)
    assert graph_cache.read(dict(KEY)) == ([["q", 7]], graph)
    for other in ({"longest": 1024}, {"cudnn": [92000, "1.27.0"]}, {"shape": KEY["shape"] | {"scale": 0.0883883}}):
        assert graph_cache.read(KEY | other) is None
    assert len(list(folder.iterdir())) == 1


def test_a_damaged_file_is_not_read(folder: Path) -> None:
    graph_cache.keep(KEY, [["q", 7]], b"graph" * 100)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:40], b"?" + whole[1:], whole.replace(b"graph", b"grapf", 1)):
        file.write_bytes(damaged)
        assert graph_cache.read(KEY) is None
    graph_cache.keep(KEY, [["q", 7]], b"graph" * 100)
    assert file.read_bytes() == whole


def test_a_file_under_anothers_name_is_not_read(folder: Path) -> None:
    other = KEY | {"longest": 1024}
    graph_cache.keep(KEY, [], b"mine")
    graph_cache.keep(other, [], b"another")
    mine, another = (folder / graph_cache.digest(key) for key in (KEY, other))
    another.replace(mine)
    assert graph_cache.read(KEY) is None


def test_those_that_nobody_reads_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "_FILES", 3)
    keys = [KEY | {"longest": longest} for longest in range(4)]
    for age, key in enumerate(keys[:3]):
        graph_cache.keep(key, [], b"graph")
        os.utime(folder / graph_cache.digest(key), (age, age))
    assert graph_cache.read(keys[0])
    graph_cache.keep(keys[3], [], b"graph")
    assert [graph_cache.read(key) is not None for key in keys] == [True, False, True, True]


def test_without_a_disk_graphs_are_built(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder would be")
    graph_cache.keep(KEY, [], b"graph")
    assert graph_cache.read(KEY) is None


@pytest.fixture
def library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for cuDNN: graphs are bytes that say what they were built from."""
    library = SimpleNamespace(built=0, __version__="1.27.0", version=91900, backend_version=lambda: library.version)

    class Written:
        def __init__(self, handle: int) -> None:
            self.content = b""

        def serialize(self) -> list[int]:
            return list(self.content)

        def deserialize(self, handle: int, content: list[int]) -> None:
            self.content = bytes(content)

        def get_workspace_size(self) -> int:
            return len(self.content)

    def build(shape: Any, count: int, longest: int, device: Any, describe: Any) -> Any:
        library.built += 1
        graph = Written(0)
        graph.content = f"{describe.__name__} {shape} {count} {longest}".encode()
        return cudnn_attention.Graph(graph, (("q", 1),), len(graph.content))

    gpu = SimpleNamespace(name="card", major=9, minor=0, multi_processor_count=132)
    library.pygraph = Written
    monkeypatch.setattr(cudnn_attention, "_library", lambda device, thread: (library, 0))
    monkeypatch.setattr(cudnn_attention, "_built", build)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    return library


def graphs(library: SimpleNamespace, *, window: int | None = None, count: int = 16, longest: int = 512) -> list[bytes]:
    """The graphs as a new process gets them."""
    for remembered in (cudnn_attention._build, cudnn_attention._surroundings):
        remembered.cache_clear()
    shape = cudnn_attention.AttentionShape(4, 2, 64, (512, 256, 256), 0.125, window)
    both = cudnn_attention._build(shape, count, longest, torch.device("cuda", 0))
    for remembered in (cudnn_attention._build, cudnn_attention._surroundings):
        remembered.cache_clear()
    assert [graph.names for graph in both] == [(("q", 1),)] * 2
    return [graph.graph.content for graph in both]


def test_a_second_process_builds_nothing_that_is_there_for_its_library(library: SimpleNamespace) -> None:
    first = graphs(library)
    assert library.built == 2
    assert graphs(library) == first
    assert library.built == 2
    others = [graphs(library, **other) for other in ({"window": 100}, {"count": 32}, {"longest": 1024})]
    assert library.built == 8
    assert len({content for pair in (first, *others) for content in pair}) == 8
    library.version += 1
    assert graphs(library) == first
    assert library.built == 10


def test_a_graph_that_cannot_be_read_back_is_not_kept(library: SimpleNamespace, folder: Path) -> None:
    library.pygraph.get_workspace_size = lambda self: 5
    graphs(library)
    library.pygraph.deserialize = lambda *_: 1 / 0
    graphs(library)
    assert library.built == 4
    assert not folder.exists()


def test_a_kept_graph_that_the_library_refuses_is_built(library: SimpleNamespace) -> None:
    first = graphs(library)
    library.pygraph.deserialize = lambda *_: 1 / 0
    assert graphs(library) == first
    assert library.built == 4
