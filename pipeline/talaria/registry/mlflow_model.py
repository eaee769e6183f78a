"""A Hugging Face folder as an MLflow model, without copying its weights.

The folder itself becomes the model: its files as hard links, so `transformers` opens the folder as it is, and beside them what
`mlflow.transformers`, `mlflow.pyfunc` and `mlflow models serve` look for: an MLmodel whose weights are in `.`, the chat
signature, the tokenizer once more under components/, and the libraries it was made with. Nothing in it names the folder or the
machine: a version may be moved, copied and downloaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import yaml

from talaria.common.files import link_or_copy
from talaria.tokenization.tokenizer_folder import ALL_FILES

CARD = "README.md"
TASK = "llm/v1/chat"
CODE = "code"
COMPONENTS = "components"
ADDED = ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml", "registered_model_meta")
"""Files that a version's folder has beside the model's own; the last is what MLflow puts into a download."""
LOADER = Path(__file__).with_name("talaria_chat_loader.py")
"""What MLflow loads a version with; it travels in the version's folder, which MLflow puts on the path."""
_LIBRARIES = ("mlflow", "torch", "transformers", "accelerate", "safetensors")
_MAX_NEW_TOKENS = 512
"""Of an answer whose caller sets no max_tokens; transformers' own default of 20 cuts most answers short."""


def fill(folder: Path, source: Path, *, card: str, run_id: str, model_id: str) -> None:
    """Make `folder` the MLflow model of the Hugging Face folder `source`. Doing it again gives the same."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != CARD:
            relink(path, folder / path.relative_to(source))
    for name in ALL_FILES:
        if (source / name).is_file():
            relink(source / name, folder / COMPONENTS / "tokenizer" / name)
    (folder / CARD).write_text(card, encoding="utf-8")
    (folder / CODE).mkdir(exist_ok=True)
    shutil.copyfile(LOADER, folder / CODE / LOADER.name)
    _write_environment(folder)
    describe(folder, run_id, model_id).save(str(folder / "MLmodel"))


def describe(folder: Path, run_id: str, model_id: str) -> Any:
    """Return the MLmodel: flavours transformers and python_function, chat messages in, a chat completion out."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    model = Model(
        run_id=run_id,
        model_id=model_id,
        signature=ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA),
        metadata={"task": TASK},
    )
    model.add_flavor(
        "transformers",
        transformers_version=importlib.metadata.version("transformers"),
        code=None,
        task="text-generation",
        inference_task=TASK,
        instance_type="TextGenerationPipeline",
        pipeline_model_type=json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0],
        model_binary=".",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
    )
    pyfunc.add_to_model(
        model,
        loader_module=LOADER.stem,
        code=CODE,
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={"max_new_tokens": _MAX_NEW_TOKENS},
    )
    return model


def relink(source: Path, target: Path) -> None:
    """Replace whatever is there by a hard link, or by a copy on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    link_or_copy(source, target)


def _write_environment(folder: Path) -> None:
    """Write the libraries that serve the model, in the three forms that MLflow reads."""
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _LIBRARIES]
    python = platform.python_version()
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [f"python={python}", "pip", {"pip": pins}]}
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), encoding="utf-8")
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")
