"""Loads a version as MLflow's own loader does, and mends two things of its answers: `stop` and `temperature`.

This file travels with every registered version and is imported where MLflow serves it: it may use MLflow alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Any:
    """Return MLflow's wrapper of the model in the folder `path`, told where the tokenizer is: a request with `stop` needs it."""
    import mlflow.transformers

    model = mlflow.transformers._load_pyfunc(path, model_config)
    model.flavor_config["source_model_name"] = str(Path(path).absolute())
    predict = model._predict
    model._predict = lambda prompts, options: predict(prompts, _with_temperature(options))
    return model


def _with_temperature(options: dict[str, Any]) -> dict[str, Any]:
    """Read the temperature as OpenAI's API does: at 0 the likeliest token is taken, above it answers are drawn.

    Without one, the model's generation_config.json decides. transformers refuses 0, and where that file says greedy it ignores
    every other.
    """
    temperature = options.get("temperature")
    if temperature is None:
        return options
    if temperature == 0:
        return {"do_sample": False} | {name: value for name, value in options.items() if name != "temperature"}
    return {"do_sample": True} | options
