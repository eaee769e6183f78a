"""The base model's tensors as its files hold them: what an export compares with, and takes what was not trained from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from talaria.base_model.inspection import read_header, stored_tensors, weight_files

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class BaseWeights:
    """The base model's tensors as its files hold them."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: path for path in weight_files(folder) for name in read_header(path)}
        self.tensors = stored_tensors(folder)

    def _stored(self, name: str) -> str:
        """A table that is the head as well may be stored under either name."""
        alias = {"model.embed_tokens.weight": "lm_head.weight"}.get(name, name)
        return name if name in self.tensors else alias

    def dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self.tensors[self._stored(name)].dtype]

    def read(self, name: str) -> Tensor:
        from safetensors import safe_open

        name = self._stored(name)
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
