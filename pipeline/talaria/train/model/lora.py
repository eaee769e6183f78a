"""LoRA adapters (Hu et al., 2021) by peft: which modules get one, how it is drawn, what it adds to a weight.

peft's draw takes whatever the process's generator gives next, so that ranks would each train another adapter. Here it depends on
the seed and the parameter's name alone, as dropout does on what adapter_dropout.py says. The layout of peft's modules (`lora_A`,
`lora_B`, `scaling`) is known in these two files only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from talaria.common.errors import ConfigError
from talaria.train.model import adapter_dropout

_ADAPTER = "default"


@dataclass(frozen=True)
class LoraOptions:
    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    """`all-linear`, ends of module names, or a regular expression that a module's whole name matches: as in peft."""
    seed: int = 0


def add_adapters(hf: Any, lora: LoraOptions) -> nn.Module:
    """Wrap the model's chosen linear layers; only their adapters train. Raises ConfigError where the choice cannot be trained."""
    import peft

    targets = _as_peft_takes_it(lora.targets)
    if targets != "all-linear":
        _require_trainable(hf, targets)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    wrapped: nn.Module = peft.get_peft_model(hf, settings)
    draw(wrapped, lora.seed)
    if lora.dropout:
        adapter_dropout.install(wrapped, lora.dropout, lora.seed)
    return wrapped


def draw(model: nn.Module, seed: int) -> None:
    """Initialise every adapter as peft does (A uniform, B zero), from (seed, the parameter's name) alone.

    Drawn on the host whatever the model is on: each kind of device has a generator of its own, with other numbers.
    """
    for name, param in model.named_parameters():
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            drawn = torch.empty(param.shape, dtype=param.dtype, device="cpu")
            param.data.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))
        elif ".lora_B." in name:
            nn.init.zeros_(param.data)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def without_wrapper(name: str) -> str:
    """The name that a parameter of a wrapped layer has in the model without adapters."""
    return name.replace(".base_layer.", ".")


def product(core: nn.Module, name: str, whole: Callable[[nn.Parameter], Tensor]) -> Tensor | None:
    """Return what an adapter adds to the weight of this name, in fp32; None where it has none. `whole` gathers a parameter."""
    if not name.endswith(".base_layer.weight"):
        return None
    module: Any = core.get_submodule(name.removesuffix(".base_layer.weight"))
    down, up = (whole(part[_ADAPTER].weight).float() for part in (module.lora_A, module.lora_B))
    scaled: Tensor = module.scaling[_ADAPTER] * (up @ down)
    return scaled


def _as_peft_takes_it(targets: str | list[str]) -> str | list[str]:
    """A bare name is an end of names, as in peft's lists: as a regular expression it could match no module of a model."""
    return [targets] if isinstance(targets, str) and re.fullmatch(r"\w+", targets) else targets


def _require_trainable(hf: nn.Module, targets: str | list[str]) -> None:
    tables = {id(hf.get_input_embeddings()): "the embedding", id(hf.get_output_embeddings()): "the head"}  # type: ignore[operator]
    matched: dict[str, nn.Module] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        found = dict(_matches(hf, target, whole_name=isinstance(targets, str)))
        if not found:
            linear = (name for name, module in hf.named_modules() if isinstance(module, nn.Linear) and id(module) not in tables)
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"train.lora.targets: {target!r} matches no module; the linear layers are {', '.join(ends)}.")
        matched |= found
    for name, module in matched.items():
        if id(module) in tables:
            raise ConfigError(f"train.lora.targets: matches {name}, {tables[id(module)]}, which gets no adapter; leave it out.")
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"train.lora.targets: matches {name}, which is no linear layer; only these get adapters, so leave it out."
            )


def _matches(hf: nn.Module, target: str, *, whole_name: bool) -> Iterator[tuple[str, nn.Module]]:
    """The modules that peft would take for a regular expression, or for an entry of a list."""
    pattern = re.compile(target if whole_name else rf"(?:.*\.)?{re.escape(target)}")
    return ((name, module) for name, module in hf.named_modules() if pattern.fullmatch(name))
