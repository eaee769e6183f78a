"""Loads a version as MLflow's own loader does, and tells it where the tokenizer is: MLflow needs that for a request with `stop`.

This file travels with every registered version and is imported where MLflow serves it: it may use MLflow alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Any:
    """Return MLflow's wrapper of the model in the folder `path`."""
    import mlflow.transformers

    model = mlflow.transformers._load_pyfunc(path, model_config)
    model.flavor_config["source_model_name"] = str(Path(path).absolute())
    return model
