"""A trained model as a Hugging Face folder: the base model's architecture and dtype, the data's tokenizer, the new weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from talaria.base_model.hf_folder import write_small_files
from talaria.base_model.inspection import INDEX, WEIGHTS
from talaria.common.files import link_or_copy
from talaria.common.output_folder import whole
from talaria.runs.model_card import Facts, readme
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.model import lora
from talaria.train.model.base_weights import BaseWeights
from talaria.train.model.transformers_internals import in_files, names_in_files
from talaria.train.optim.adamw import AdamW
from talaria.train.train_state import TrainJob

if TYPE_CHECKING:
    from talaria.train.model.causal_lm import CausalLM

_SHARD_BYTES = 5_000_000_000


class Exporter:
    """Writes the model as it is now. Collective: all ranks hold parts, the main process writes."""

    def __init__(self, model: CausalLM, optimizer: AdamW, trained: TrainedParameters, job: TrainJob, group: ProcessGroup) -> None:
        self.model, self.optimizer, self.trained, self.job, self.group = model, optimizer, trained, job, group
        self.base = BaseWeights(job.base)

    def write(self, folder: Path, step: int) -> None:
        """Fill `folder` in one rename; an older one is replaced. LoRA's adapter goes, by itself too, into `folder`/adapter."""
        weights = self._weights()
        if not self.group.is_main:
            for _ in weights:
                pass
            self._adapter()
            return
        with whole(folder) as partial:
            save_weights(weights, partial)
            write_small_files(self.job.tokenizer, self.job.base, partial)
            (partial / "README.md").write_text(readme(Facts.of_export(self.job.config, step)), encoding="utf-8")
            if adapter := self._adapter():
                self.model.hf.save_pretrained(partial / "adapter", state_dict=adapter, save_embedding_layers=False)  # type: ignore[operator]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name in the model's files, whole tensor in host memory) in the main process, nothing in others. Collective.

        Trained parameters come from their fp32 masters, rounded once to the dtype that the base has them in; what is not
        trained is the base's own, to the bit; a tied weight comes once; an adapter's product is added to the base's weight.
        """
        core = self.model.core
        for wrapped, param in core.named_parameters():
            if lora.is_adapter(wrapped):
                continue
            name = lora.without_wrapper(wrapped)
            if not param.requires_grad:
                names = names_in_files(core, name, param)
                added = lora.product(core, wrapped, self._whole)
                if not self.group.is_main:
                    continue
                for stored in names:
                    tensor = self.base.read(stored)
                    yield stored, tensor if added is None else (tensor.float() + added.cpu()).to(tensor.dtype)
                continue
            master = self._whole(param)
            if self.group.is_main:
                for stored, tensor in in_files(core, name, master).items():
                    yield stored, tensor.to(self.base.dtype(stored)).cpu()

    def _adapter(self) -> dict[str, Tensor]:
        """The adapter's tensors in fp32, by their names in the peft model; empty without one. Collective."""
        named = [(name, param) for name, param in self.model.hf.named_parameters() if lora.is_adapter(name)]
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


def link_folder(source: Path, target: Path) -> None:
    """The same folder under a second name at no cost: hard links where the file system has them."""
    with whole(target) as partial:
        shutil.copytree(source, partial, copy_function=link_or_copy, dirs_exist_ok=True)
