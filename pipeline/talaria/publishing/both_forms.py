"""Settings of a model and a tokenizer such that transformers 4 and 5 read the same from them.

Version 5 saves rotary settings as `rope_parameters` and calls a plain tokenizer `TokenizersBackend`. Version 4 knows neither: it
takes 10,000 for the base of the rotary embedding without a word, and refuses the tokenizer. Version 5 reads both forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from talaria.tokenization.tokenizer_folder import AS_IT_IS

ROPE = "rope_parameters"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_FORMER_NAMES = {"qwen3_moe": {"num_experts": "num_local_experts"}}
"""model_type -> version 4's name of a setting -> version 5's."""
_OF_LOADING = ("backend", "is_local", "local_files_only")
"""What version 5 notes about how a tokenizer was loaded."""


def model_config(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return config.json with its rotary settings in both forms; None where version 4 has no words for them.

    `rope`: the rotary settings as version 5 reads them from `config`. What is in `config` stays as it is.
    """
    config = _with_former_names(config)
    if not rope:
        return dict(config)
    former = _version_4(config, rope)
    if former is None:
        return None
    return {**{name: value for name, value in former.items() if name not in config}, **config, ROPE: dict(rope)}


def _with_former_names(config: Mapping[str, Any]) -> dict[str, Any]:
    names = _FORMER_NAMES.get(config["model_type"], {})
    return {**{former: config[name] for former, name in names.items() if name in config}, **config}


def _version_4(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if _FULL not in rope:
        return _flat(config, rope)
    full, sliding = rope[_FULL], rope.get(_SLIDING)
    found = _flat(config, full)
    if sliding is None:
        return found
    if config["model_type"] == "gemma3_text" and sliding["rope_type"] == "default":
        return found | {"rope_local_base_freq": sliding["rope_theta"]}
    plain = sliding["rope_type"] == "default" and sliding["rope_theta"] == full["rope_theta"]
    return found if plain else None


def _flat(config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(rope)
    found: dict[str, Any] = {"rope_theta": rest.pop("rope_theta")}
    for name in ("partial_rotary_factor", "original_max_position_embeddings") if config["model_type"] == "phi3" else ():
        if name in rest:  # beside rope_scaling, in which Phi-3's class allows three fields
            found[name] = rest.pop(name)
    if rest.get("rope_type") == "default":
        return found | {"rope_scaling": None}
    if config["model_type"] == "phi3":
        rest["type"] = rest.pop("rope_type")
    return found | {"rope_scaling": rest}


def tokenizer_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json as both versions read it."""
    found = {name: value for name, value in settings.items() if name not in _OF_LOADING}
    if found.get("tokenizer_class") in (None, "TokenizersBackend"):
        found["tokenizer_class"] = AS_IT_IS
    if isinstance(extra := found.get("extra_special_tokens"), list):  # version 4 knows it as names with tokens only
        del found["extra_special_tokens"]
        found.setdefault("additional_special_tokens", extra)
    # version 4's plain class otherwise adds token_type_ids, which generate() refuses
    return {"model_input_names": ["input_ids", "attention_mask"], **found}
