"""The model families that the trainer has been proven on, and what keeps a model from being trained: read from config.json alone.

No torch here: `talaria run` asks before it downloads anything, the base stage before it copies, the launcher before ranks start.
The proof of each family is tests/train/test_families.py; docs/models.md has its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from talaria.common.errors import DataError

FAMILIES = (
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)

_DTYPES = (None, "float32", "float16", "bfloat16")
_LAYERS = ("full_attention", "sliding_attention")
_UNSUPPORTED = {
    "attn_logit_softcapping": "caps its attention scores",
    "final_logit_softcapping": "caps its logits",
    "output_router_logits": "adds a loss for its router to that of the data",
    "use_bidirectional_attention": "lets a token see those that come after it",
}
_DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout")


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return why a model of this config.json cannot be trained and what to do, or None where it can."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return "its config.json names no model_type; save the model with save_pretrained, which writes it"
    if model_type not in FAMILIES:
        own = ", and needs code of its own, which is never run" if config.get("auto_map") else ""
        known = ", ".join(FAMILIES)
        return f"model_type {model_type!r} is not one of {known}{own}; choose another base model"
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, Mapping) else "unknown"
        return f"its weights are quantised ({method}); train the model that was quantised, or dequantise it and save it"
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype not in _DTYPES:
        return f"its config.json gives {dtype!r} as the dtype of its weights; write float32, float16 or bfloat16 there"
    if not isinstance(config.get("vocab_size"), int):
        return "its config.json gives no vocab_size; fetch it again, or save the model with save_pretrained"
    if strange := next((kind for kind in config.get("layer_types") or () if kind not in _LAYERS), None):
        return f"its layers of type {strange!r} carry a state from one conversation into the next; choose another base model"
    if setting := next((name for name in _UNSUPPORTED if config.get(name)), None):
        return f"it {_UNSUPPORTED[setting]} ({setting} in its config.json), which is not supported; choose another base model"
    if dropout := next((name for name in _DROPOUTS if config.get(name)), None):
        return f"{dropout} is not supported; set it to 0 in config.json"
    return None


def require_trainable(config: Mapping[str, Any], name: str) -> None:
    """Raise DataError, one sentence beginning with `name`, for a model that cannot be trained."""
    if why := refusal(config):
        raise DataError(f"{name}: {why}.")
