"""A Hugging Face folder loaded for training: every tensor of it, and nothing that is not in it."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talaria.base_model.inspection import listed, require_usable, stored_tensors
from talaria.common.errors import ConfigError, DataError
from talaria.train.kernels import attention
from talaria.train.model.base_weights import BaseWeights
from talaria.train.model.causal_lm import CausalLM, ModelOptions
from talaria.train.model.lora import add_adapters


def load_model(
    folder: str | Path, options: ModelOptions, device: torch.device | str, *, weights_follow: bool = False
) -> CausalLM:
    """Load a Hugging Face folder for training.

    weights_follow: every weight will be replaced, by a checkpoint's; none is read then, and they hold anything until they are.
    Raises DataError for a folder that does not hold exactly the model that its config.json describes, ConfigError for settings
    that do not fit it.
    """
    folder = Path(folder)
    require_usable(folder)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    # As it is stored and straight to the device, where a change of type costs nothing: 1.3 s for 8 GB, and 5.4 on the host.
    stored = torch.bfloat16 if {tensor.dtype for tensor in stored_tensors(folder).values()} == {"BF16"} else dtype
    how: dict[str, Any] = {"dtype": stored, "device_map": {"": device}, "attn_implementation": attention.register()}
    hf = _without_weights(folder, **how) if weights_follow else load_whole(folder, **how)
    if stored != dtype:
        hf.to(dtype)
    hf.config.use_cache = False
    # The table's row of the padding token is a row like any other: nothing is padded here.
    hf.get_input_embeddings().padding_idx = None
    freeze(hf, options.trainable, options.freeze)
    model = CausalLM(add_adapters(hf, options.lora) if options.lora else hf, options)
    model.stored_in_bf16 = stored == torch.bfloat16
    if options.fp8 and (not model.fused or hf.config.hidden_size % 16 or hf.config.intermediate_size % 16):
        why = model.plain_because or "its widths are no multiples of 16"
        raise ConfigError(f"train.fp8 does not work for {folder}, as {why}; leave it off.")
    model.to(device)
    if not weights_follow:
        _require_finite(hf, folder)
    return model


def all_are_trained(options: ModelOptions) -> bool:
    """Whether a checkpoint holds every weight of the model, and none need come from the base."""
    return options.lora is None and not options.freeze and "*" in options.trainable


def import_family(folder: str | Path) -> None:
    """Import what loading this model will want, and load nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with contextlib.suppress(Exception), torch.device("meta"):  # loading itself says what is wrong with a folder
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def freeze(hf: nn.Module, trainable: Sequence[str], frozen: Sequence[str]) -> None:
    """Let the parameters train whose names match one of `trainable` and none of `frozen`.

    Raises ConfigError for a pattern that matches none, and where nothing would be trained.
    """
    names = [name for name, _ in hf.named_parameters()]
    for setting, patterns in (("trainable", trainable), ("freeze", frozen)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"train.{setting}: {pattern!r} matches no parameter; they have names like {names[len(names) // 2]}."
                )

    def trains(name: str) -> bool:
        wanted, held = (any(fnmatch.fnmatchcase(name, pattern) for pattern in part) for part in (trainable, frozen))
        return wanted and not held

    for name, param in hf.named_parameters():
        param.requires_grad_(trains(name))
    if not any(param.requires_grad for param in hf.parameters()):
        raise ConfigError("train.trainable and train.freeze leave no parameter to train.")


def load_whole(folder: Path, **how: Any) -> Any:
    """Load with transformers and take nothing for granted: it would draw what is missing at random and drop what is too much."""
    from transformers import AutoModelForCausalLM

    hf, found = _from_pretrained(AutoModelForCausalLM, folder, folder, trust_remote_code=False, **how)
    absent, spare = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if absent:
        also = f", and holds {listed(spare)} instead" if spare else ""
        raise DataError(f"{folder}: lacks {listed(absent)}, which its config.json asks for{also}; fetch or save the model again.")
    if spare:
        raise DataError(f"{folder}: holds {listed(spare)}, which its config.json does not know; they do not belong together.")
    _require_tied(hf, folder)
    if found["mismatched_keys"]:
        name, stored, wanted = sorted(found["mismatched_keys"])[0]
        raise DataError(
            f"{folder}: {name} is {list(stored)}, but its config.json asks for {list(wanted)}; they do not belong together."
        )
    return hf


def _without_weights(folder: Path, **how: Any) -> Any:
    """Make the folder's model as `load_whole` does, buffers and all, but with weights that transformers draws."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    hf, _ = _from_pretrained(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], folder, None, config=config, state_dict={}, **how)
    return hf


def _from_pretrained(kind: Any, folder: Path, *source: Path | None, **how: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model and what was found of it; raises DataError where transformers cannot make it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its own report of the same, a table of names
    logging.disable_progress_bar()  # redraws its line, which a log file keeps
    try:
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            *source, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **how
        )
        return loaded
    except torch.OutOfMemoryError:  # a RuntimeError, but no fault of the folder
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"{folder}: transformers cannot load it: {reason}.") from error
    finally:
        logging.set_verbosity(before)


def _require_tied(hf: Any, folder: Path) -> None:
    """Refuse a head of its own in a folder whose config.json ties it to the embedding: transformers would drop it."""
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    stored = BaseWeights(folder)
    if (
        hf.config.tie_word_embeddings
        and {table, head} <= stored.tensors.keys()
        and not torch.equal(stored.read(table), stored.read(head))
    ):
        raise DataError(f"{folder}: holds {head} beside another {table}, but its config.json ties them; one of them is wrong.")


@torch.no_grad()
def _require_finite(hf: nn.Module, folder: Path) -> None:
    bad = [name for name, param in hf.named_parameters() if not bool(torch.isfinite(param).all())]
    if bad:
        raise DataError(f"{folder}: {listed(bad)} holds NaN or infinite numbers; fetch the model again, or choose another one.")
