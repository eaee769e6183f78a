"""A trained model as a Hugging Face folder: the base model's architecture and dtype, the data's tokenizer, the new weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from talaria.base_model import hf_folder as hf_folder_module
from talaria.common.files import link_or_copy
from talaria.common.output_folder import whole
from talaria.runs.model_card import Facts, readme
from talaria.tokenization.tokenizer_folder import save, template_of
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import TrainedParameters
from talaria.train.optim.adamw import AdamW
from talaria.train.train_state import TrainJob

if TYPE_CHECKING:
    from talaria.train.model.causal_lm import CausalLM

_SHARD_BYTES = 5_000_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Exporter:
    """Writes the model as it is now. Collective: all ranks hold parts, rank 0 writes."""

    def __init__(self, model: CausalLM, optimizer: AdamW, trained: TrainedParameters, job: TrainJob, group: ProcessGroup) -> None:
        self.model, self.optimizer, self.trained, self.job, self.group = model, optimizer, trained, job, group
        self.dtype = stored_dtype(job.base)

    def write(self, folder: Path, step: int) -> None:
        """Fill `folder` in one rename; an older one is replaced. LoRA's adapter goes, by itself too, into `folder`/adapter."""
        weights = self._weights()
        if not self.group.is_main:
            for _ in weights:
                pass
            self._adapter()
            return
        base = self.job.base
        with whole(folder) as partial:
            save_weights(weights, partial)
            shutil.copyfile(base / "config.json", partial / "config.json")
            if (base / "generation_config.json").exists():
                shutil.copyfile(base / "generation_config.json", partial / "generation_config.json")
            save(self.job.tokenizer, partial, template_of(self.job.tokenizer))
            hf_folder_module.describe(partial)
            (partial / "README.md").write_text(readme(Facts.of_export(self.job.config, step)), encoding="utf-8")
            if adapter := self._adapter():
                self.model.hf.save_pretrained(partial / "adapter", state_dict=adapter)  # type: ignore[operator]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the Hugging Face model, whole tensor in host memory) on rank 0, an empty tensor on others. Collective.

        Trained parameters come from their fp32 masters, rounded once; a tied weight comes once, under its first name; an
        adapter's product is added to the weight that it belongs to.
        """
        core = self.model.core
        for name, param in core.named_parameters():
            if ".lora_" in name:
                continue
            whole = self._whole(param)
            module = core.get_submodule(name.rpartition(".")[0].removesuffix(".base_layer"))
            if name.endswith(".base_layer.weight"):
                down, up = (self._whole(part["default"].weight).float() for part in (module.lora_A, module.lora_B))
                whole = whole.float() + module.scaling["default"] * (up @ down)
            yield name.replace(".base_layer.", "."), whole.to(self.dtype).cpu() if self.group.is_main else torch.empty(0)

    def _adapter(self) -> dict[str, Tensor]:
        """The adapter's tensors in fp32, by their names in the peft model; empty without one. Collective."""
        if not self.job.config.train.lora.rank:
            return {}
        named = [(name, param) for name, param in self.model.hf.named_parameters() if ".lora_" in name]
        return {name: self._whole(param).float().cpu() for name, param in named}

    def _whole(self, param: nn.Parameter) -> Tensor:
        index = next((index for index, trained in enumerate(self.optimizer.params) if trained is param), None)
        if index is not None:
            return self.trained.whole(index, self.optimizer.master(index))
        if isinstance(param, DTensor):
            whole: Tensor = param.full_tensor().detach()
            return whole
        return param.detach()


def save_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """safetensors files of at most about 5 GB and, where there are several, the index; holds one file's tensors at a time."""
    from safetensors.torch import save_file

    files: list[dict[str, Tensor]] = []
    sizes: list[int] = []
    places: dict[str, int] = {}
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if not files or sizes[-1] + size > _SHARD_BYTES:
            if files:
                save_file(files[-1], _part(folder, len(files)), metadata={"format": "pt"})
                files[-1] = {}
            files.append({})
            sizes.append(0)
        files[-1][name] = tensor.contiguous()
        sizes[-1] += size
        places[name] = len(files)
    save_file(files[-1], _part(folder, len(files)), metadata={"format": "pt"})
    if len(files) == 1:
        _part(folder, 1).rename(folder / WEIGHTS)
        return
    final = {number: f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)}
    for number, name in final.items():
        _part(folder, number).rename(folder / name)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": {name: final[number] for name, number in places.items()}}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def stored_dtype(base: Path) -> torch.dtype:
    """The dtype that the base model's config.json declares; fp32 where it declares none."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def link_folder(source: Path, target: Path) -> None:
    """The same folder under a second name at no cost: hard links where the file system has them."""
    with whole(target) as partial:
        shutil.copytree(source, partial, copy_function=link_or_copy, dirs_exist_ok=True)
