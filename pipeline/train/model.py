"""A Hugging Face causal language model as the trainer runs it: packed conversations in, the sum of their losses out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ConfigError
from pipeline.train import attention
from pipeline.train.batch import MicroBatch
from pipeline.train.loss import linear_cross_entropy

if TYPE_CHECKING:
    from pipeline.config import Train

FAMILIES = ("qwen3", "qwen2", "llama")


class CausalLM(nn.Module):
    """`forward(batch)` is the sum of weighted NLL over the batch's supervised targets, an fp32 scalar.

    Everything, the head included, runs inside `forward`, so that hooks on this module (FSDP's) see every use of a weight.
    """

    def __init__(self, hf: nn.Module, recompute: str = "off") -> None:
        super().__init__()
        self.hf = hf
        self.recompute = recompute

    @property
    def core(self) -> Any:
        """The Hugging Face ForCausalLM, without the adapters' wrapper."""
        get_base = getattr(self.hf, "get_base_model", None)
        return get_base() if get_base else self.hf

    def forward(self, batch: MicroBatch) -> Tensor:
        hidden = self.hidden(batch).index_select(0, batch.positions)
        core = self.core
        return linear_cross_entropy(core.model.norm(hidden), core.lm_head.weight, batch.targets, batch.weights)

    def logits(self, batch: MicroBatch) -> Tensor:
        """[T, V] for every packed token: for checks and small models only."""
        core = self.core
        out: Tensor = core.lm_head(core.model.norm(self.hidden(batch)))
        return out

    def hidden(self, batch: MicroBatch) -> Tensor:
        """[T, H], the last layer's output before the final norm."""
        body = self.core.model
        x = body.embed_tokens(batch.input_ids.unsqueeze(0))
        kwargs = {
            "attention_mask": None,
            "position_ids": batch.position_ids.unsqueeze(0),
            "position_embeddings": body.rotary_emb(x, batch.position_ids.unsqueeze(0)),
            "use_cache": False,
            "cu_seq_lens_q": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
        }
        for index, layer in enumerate(body.layers):
            x = checkpoint(layer, x, use_reentrant=False, **kwargs) if self._recomputed(index) else layer(x, **kwargs)
        out: Tensor = x.squeeze(0)
        return out

    def _recomputed(self, index: int) -> bool:
        if not torch.is_grad_enabled():
            return False
        return self.recompute == "full" or (self.recompute == "selective" and index % 2 == 1)


def load_model(folder: str | Path, train: Train, device: torch.device | str) -> CausalLM:
    """Load a Hugging Face folder for training. Raises ConfigError for a family that has not been checked."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    check_supported(config, str(folder))
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention.register())
    hf.config.use_cache = False
    if train.lora.rank:
        hf = add_adapters(hf, train)
    recompute = "off" if train.activation_checkpointing == "auto" else train.activation_checkpointing
    return CausalLM(hf, recompute).to(device)


def add_adapters(hf: Any, train: Train) -> nn.Module:
    """Wrap the model's linear layers in LoRA adapters (peft); only these train."""
    import peft

    lora = train.lora
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets
    )
    wrapped: nn.Module = peft.get_peft_model(hf, settings)
    return wrapped


def check_supported(config: Any, folder: str) -> None:
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"{folder}: model_type {config.model_type!r} is not one of {known}; choose another base model.")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ConfigError(f"{folder}: sliding-window attention is not supported; set use_sliding_window to false in config.json.")


def layers(model: CausalLM) -> list[nn.Module]:
    """The decoder layers, in order: the units of sharding."""
    return list(model.core.model.layers)


def sum_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Sum of weighted NLL over the batch's targets (fp32 scalar), through the module's hooks."""
    loss: Tensor = model(batch)
    return loss
