"""How a rank writes its part of a checkpoint: safetensors files as torch.distributed.checkpoint's own reader expects them.

PyTorch's writer puts a whole file together in memory first, and holds the interpreter lock meanwhile, seconds for a few GB: the
training beside it would stand still. This one hands tensors to safetensors to write from where they are, which does neither.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from talaria.common.files import fsync

_FILE_BYTES = 4 << 30
"""A file is closed once it holds so much."""


class ShardWriter(HuggingFaceStorageWriter):
    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder
        self.written: list[Path] = []
        """This rank's files, flushed to the disk."""

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        for number, items in enumerate(_in_files(plan.items)):
            tensors = {item.index.fqn: _resolved(planner, item) for item in items}
            places = {item.index.fqn: {"saved_offsets": list(_offsets(item))} for item in items}
            path = self.folder / f"rank-{plan.storage_data:05d}-{number:03d}.safetensors"
            # The reader finds a part's place in its tensor by this entry.
            save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(places), "format": "pt"})
            fsync(path)
            self.written.append(path)
            sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
            results += [WriteResult(item.index, sizes[item.index.fqn], path.name) for item in items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future


def _in_files(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    file: list[WriteItem] = []
    size = 0
    for item in items:
        file.append(item)
        size += item.tensor_storage_size() or 0
        if size >= _FILE_BYTES:
            yield file
            file, size = [], 0
    if file:
        yield file


def _resolved(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor)
    return tensor.detach().contiguous()


def _offsets(item: WriteItem) -> tuple[int, ...]:
    assert item.tensor_data is not None
    return tuple(item.tensor_data.chunk.offsets)
