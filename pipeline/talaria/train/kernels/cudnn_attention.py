"""cuDNN's attention for packed conversations, through its own Python frontend (package nvidia-cudnn-frontend).

torch's way to it builds a graph anew at each call, 55 ms, and gives wrong gradients for packed input (torch 2.11). Here a
graph is built once for each bucket of (conversations, longest conversation) and bound to the tensors of a call; where the
conversations lie is data, not part of the graph. Building takes 0.07 s, for which Python stands still: a thread that knows what
will come (`build_ahead`) does it before, and what was built is kept on disk (graph_cache.py).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talaria.common.files import file_digest
from talaria.train.kernels import graph_cache

LENGTHS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 65536, 131072)
"""Buckets of the longest conversation. A block of rows that no conversation reaches costs 9 ns: few, but not too few."""
_CONVERSATIONS = 16
"""Their number is rounded up to a multiple of this, with empty ones, while none is long."""
_LONG = 4096
"""With a longer conversation the number is rounded up to a power of two: each costs scratch memory as if it were as long."""


@dataclass(frozen=True)
class AttentionShape:
    """All that a graph depends on but the buckets."""

    heads: int
    kv_heads: int
    width: int
    rows: tuple[int, int, int]
    """Elements between one token and the next in q, k, v."""
    scale: float
    window: int | None


@dataclass(frozen=True)
class Graph:
    """A built graph. It is run once a layer and pass, so what can be asked of the library once is not asked again."""

    graph: Any = field(compare=False)
    names: tuple[tuple[str, int], ...]
    """Its inputs and outputs, and by which number the graph knows each."""
    workspace_bytes: int

    def __call__(self, device: torch.device, **tensors: Tensor) -> None:
        cudnn, handle = _library(device, threading.get_ident())
        cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=device)
        bound = {uid: tensors[name].data_ptr() for name, uid in self.names}
        self.graph.execute(bound, workspace.data_ptr(), handle=handle)


@dataclass(frozen=True)
class PackedOffsets:
    """Where conversations lie, as cuDNN wants to be told: element offsets of each, int32[b + 1, 1, 1, 1], and lengths."""

    cu_seqlens: Tensor
    longest: int
    """The bucket."""
    _offsets: dict[int, Tensor] = field(default_factory=dict)
    _bound: dict[AttentionShape, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int) -> PackedOffsets:
        count = len(cu_seqlens) - 1
        longest = bucket(max_seqlen)
        empty = graph_conversations(count, longest) - count
        return cls(torch.cat([cu_seqlens, cu_seqlens[-1:].expand(empty)]), longest)

    @property
    def count(self) -> int:
        return len(self.cu_seqlens) - 1

    def offsets(self, row: int) -> Tensor:
        """Of a tensor with `row` elements a token."""
        if row not in self._offsets:
            self._offsets[row] = (self.cu_seqlens * row).view(-1, 1, 1, 1)
        return self._offsets[row]

    def lengths(self) -> Tensor:
        if 0 not in self._offsets:
            self._offsets[0] = self.cu_seqlens.diff().view(-1, 1, 1, 1)
        return self._offsets[0]

    def bound(self, shape: AttentionShape) -> dict[str, Tensor]:
        """Return a graph's inputs that are the same in each layer of a micro-batch."""
        if shape not in self._bound:
            self._bound[shape] = self._tensors(shape)
        return self._bound[shape]

    def _tensors(self, shape: AttentionShape) -> dict[str, Tensor]:
        row_q, row_k, row_v = shape.rows
        rows = {"at_q": row_q, "at_k": row_k, "at_v": row_v, "at_out": shape.heads * shape.width}
        rows |= {"at_kv": shape.kv_heads * shape.width, "at_lse": shape.heads}
        return {name: self.offsets(row) for name, row in rows.items()} | {
            "lengths_q": self.lengths(),
            "lengths_k": self.lengths(),
        }


def scratch_bytes(count: int, longest: int, features: int) -> int:
    """Return what the backward pass allocates beside its results, for `count` conversations; features: heads * d.

    Two fp32 numbers for each feature of each place of a [conversations, longest] grid: 16 GiB were seen for 16 of 32,768.
    """
    longest = bucket(longest)
    return 8 * graph_conversations(count, longest) * longest * features


def graph_conversations(count: int, longest: int) -> int:
    """Return how many conversations a graph for `count` of them is built for; longest: a bucket of their lengths."""
    return 1 << (count - 1).bit_length() if longest > _LONG else -(-count // _CONVERSATIONS) * _CONVERSATIONS


def bucket(length: int) -> int:
    return next((size for size in LENGTHS if size >= length), 1 << math.ceil(math.log2(length)))


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: PackedOffsets, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns (out [T, heads, d], log-sum-exp fp32[T, heads])."""
    shape = shape_of(q, k, v, scale, window)
    out, lse = (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        torch.empty(q.shape[:2], dtype=torch.float32, device=q.device),
    )
    run, _ = graphs(shape, offsets, q.device)
    run(q.device, q=q, k=k, v=v, out=out, lse=lse, **offsets.bound(shape))
    return out, lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: PackedOffsets,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = shape_of(q, k, v, scale, window)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    tensors = {"q": q, "k": k, "v": v, "out": out, "d_out": d_out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    _, run = graphs(shape, offsets, q.device)
    run(q.device, **tensors, **offsets.bound(shape))
    return dq, dk, dv


def shape_of(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> AttentionShape:
    rows = q.stride(0), k.stride(0), v.stride(0)
    return AttentionShape(q.shape[1], k.shape[1], q.shape[2], rows, scale, window)


_met: dict[tuple[AttentionShape, torch.device], None] = {}


def graphs(shape: AttentionShape, offsets: PackedOffsets, device: torch.device) -> tuple[Graph, Graph]:
    """Forward and backward."""
    _met[shape, device] = None
    return _build(shape, offsets.count, offsets.longest, device)


def build_ahead(count: int, longest: int) -> None:
    """Build the graphs for `count` conversations of at most `longest` tokens, for each shape of attention met so far."""
    longest = bucket(longest)
    for shape, device in tuple(_met):
        _build(shape, graph_conversations(count, longest), longest, device)


@cache
def _build(shape: AttentionShape, count: int, longest: int, device: torch.device) -> tuple[Graph, Graph]:
    return _graph(shape, count, longest, device, _forward), _graph(shape, count, longest, device, _backward)


def fault(width: int, device: torch.device) -> str | None:
    """Why this cuDNN cannot do it; None if it can."""
    try:
        _build(AttentionShape(2, 1, width, (2 * width, width, width), 1.0, None), _CONVERSATIONS, LENGTHS[0], device)
    except Exception as error:  # whatever it is: another kernel is taken then, and start-up says why
        return str(error).partition("\n")[0]
    return None


@cache
def _library(device: torch.device, thread: int) -> tuple[Any, Any]:
    """Return the library and a handle of it, which must not be used by two threads at once."""
    import cudnn

    with torch.cuda.device(device):
        return cudnn, cudnn.create_handle()


@cache
def _surroundings(device: torch.device) -> dict[str, Any]:
    """Return what decides a graph beside what is asked for, the source that describes it included."""
    cudnn, _ = _library(device, threading.get_ident())
    gpu = torch.cuda.get_device_properties(device)
    return {
        "cudnn": [cudnn.backend_version(), cudnn.__version__, torch.version.cuda],
        "gpu": [gpu.name, gpu.major, gpu.minor, gpu.multi_processor_count],
        "source": file_digest(Path(__file__)),
    }


def _graph(
    shape: AttentionShape, count: int, longest: int, device: torch.device, describe: Callable[[Any, _Inputs], dict[str, Any]]
) -> Graph:
    """Read a graph from disk, or build it and leave it there."""
    wanted = {"shape": asdict(shape), "conversations": count, "longest": longest, "pass": describe.__name__}
    key = _surroundings(device) | wanted
    with contextlib.suppress(Exception):  # whatever is wrong with what was kept: the graph is built then
        if kept := graph_cache.read(key):
            return _restored(*kept, device)
    built = _built(shape, count, longest, device, describe)
    with contextlib.suppress(Exception):  # a plan that cannot be written down
        written = bytes(built.graph.serialize())
        if _restored(built.names, written, device) == built:
            graph_cache.keep(key, built.names, written)
    return built


def _restored(names: Iterable[tuple[str, int]], written: bytes, device: torch.device) -> Graph:
    cudnn, handle = _library(device, threading.get_ident())
    graph = cudnn.pygraph(handle=handle)
    graph.deserialize(handle, list(written))
    return Graph(graph, tuple((name, uid) for name, uid in names), max(1, graph.get_workspace_size()))


def _built(
    shape: AttentionShape, count: int, longest: int, device: torch.device, describe: Callable[[Any, _Inputs], dict[str, Any]]
) -> Graph:
    cudnn, handle = _library(device, threading.get_ident())
    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.BFLOAT16,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    inputs = _Inputs(cudnn, graph, shape, count, longest)
    outputs = describe(graph, inputs)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    names = tuple((name, tensor.get_uid()) for name, tensor in (inputs.names | outputs).items())
    return Graph(graph, names, max(1, graph.get_workspace_size()))


class _Inputs:
    """The inputs that both graphs have, and how they and their outputs lie in memory: one conversation after the other."""

    def __init__(self, cudnn: Any, graph: Any, shape: AttentionShape, count: int, longest: int) -> None:
        self.cudnn, self.graph, self.shape, self.count, self.longest = cudnn, graph, shape, count, longest
        self.names: dict[str, Any] = {}
        for name, heads, row in zip("qkv", (shape.heads, shape.kv_heads, shape.kv_heads), shape.rows, strict=True):
            self.tensor(name, f"at_{name}", *self.layout(heads, row))

    def integers(self, name: str, length: int) -> Any:
        if name not in self.names:
            kind = self.cudnn.data_type.INT32
            self.names[name] = self.graph.tensor(name=name, dim=[length, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kind)
        return self.names[name]

    def layout(self, heads: int, row: int) -> tuple[list[int], list[int]]:
        """(dimensions, strides) of [conversation, head, token, d]."""
        width = self.shape.width
        return [self.count, heads, self.longest, width], [self.longest * row, width, row, 1]

    def lse_layout(self) -> tuple[list[int], list[int]]:
        heads = self.shape.heads
        return [self.count, heads, self.longest, 1], [self.longest * heads, 1, heads, 1]

    def tensor(self, name: str, at: str, dim: Sequence[int], stride: Sequence[int], kind: Any = None) -> Any:
        kind = kind or self.cudnn.data_type.BFLOAT16
        self.names[name] = self.graph.tensor(name=name, dim=dim, stride=stride, data_type=kind)
        self.names[name].set_ragged_offset(self.integers(at, self.count + 1))
        return self.names[name]

    def mark(self, output: Any, at: str, dim: Sequence[int], stride: Sequence[int]) -> Any:
        output.set_output(True).set_dim(dim).set_stride(stride)
        output.set_ragged_offset(self.integers(at, self.count + 1))
        return output

    @property
    def options(self) -> dict[str, Any]:
        window = {} if self.shape.window is None else {"sliding_window_length": self.shape.window}
        return {
            **{name: self.names[name] for name in "qkv"},
            **window,
            "attn_scale": self.shape.scale,
            "use_causal_mask": True,
            "use_padding_mask": True,
            "seq_len_q": self.integers("lengths_q", self.count),
            "seq_len_kv": self.integers("lengths_k", self.count),
        }


def _forward(graph: Any, inputs: _Inputs) -> dict[str, Any]:
    shape = inputs.shape
    out, lse = graph.sdpa(name="forward", generate_stats=True, **inputs.options)
    lse.set_data_type(inputs.cudnn.data_type.FLOAT)
    return {
        "out": inputs.mark(out, "at_out", *inputs.layout(shape.heads, shape.heads * shape.width)),
        "lse": inputs.mark(lse, "at_lse", *inputs.lse_layout()),
    }


def _backward(graph: Any, inputs: _Inputs) -> dict[str, Any]:
    shape = inputs.shape
    of_q = inputs.layout(shape.heads, shape.heads * shape.width)
    of_kv = inputs.layout(shape.kv_heads, shape.kv_heads * shape.width)
    dq, dk, dv = graph.sdpa_backward(
        name="backward",
        o=inputs.tensor("out", "at_out", *of_q),
        dO=inputs.tensor("d_out", "at_out", *of_q),
        stats=inputs.tensor("lse", "at_lse", *inputs.lse_layout(), kind=inputs.cudnn.data_type.FLOAT),
        **inputs.options,
    )
    return {
        "dq": inputs.mark(dq, "at_out", *of_q),
        "dk": inputs.mark(dk, "at_kv", *of_kv),
        "dv": inputs.mark(dv, "at_kv", *of_kv),
    }
