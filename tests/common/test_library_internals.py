"""Names that libraries do not promise to keep are used in one file each; a new version without one is told here, by name."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pipeline" / "talaria"

INTERNALS = {
    ("typer._click.exceptions", "ClickException"): "cli/app.py",
    ("typer._click.exceptions", "NoArgsIsHelpError"): "cli/app.py",
    ("atexit", "_run_exitfuncs"): "cli/startup.py",
    ("fastokens", "_native"): "tokenization/fastokens_backend.py",
    ("fastokens._native", "Tokenizer"): "tokenization/fastokens_backend.py",
    ("transformers.utils.chat_template_utils", "_compile_jinja_template"): "tokenization/rendered/sandbox.py",
    ("mlflow.transformers", "_load_pyfunc"): "registry/talaria_chat_loader.py",
    ("torch", "_scaled_mm"): "train/kernels/torch_internals.py",
    ("torch", "_assert_async"): "train/kernels/torch_internals.py",
    ("torch.ops.aten", "_flash_attention_forward"): "train/kernels/torch_internals.py",
    ("torch.ops.aten", "_flash_attention_backward"): "train/kernels/torch_internals.py",
    ("torch.distributed._symmetric_memory", "empty"): "train/distributed/transport.py",
    ("torch.distributed._symmetric_memory", "rendezvous"): "train/distributed/transport.py",
}


@pytest.mark.parametrize(("module", "name"), INTERNALS)
def test_the_installed_library_has_it(module: str, name: str) -> None:
    owner = importlib.import_module(module.removesuffix(".ops.aten"))
    for part in ("ops", "aten") if module.endswith(".ops.aten") else ():
        owner = getattr(owner, part)
    assert hasattr(owner, name)


def test_no_other_file_uses_a_librarys_internals() -> None:
    allowed = set(INTERNALS.values())
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and not (node.module or "").startswith(("talaria", "__future__"))
        and any(part.startswith("_") for part in [*(node.module or "").split("."), *(alias.name for alias in node.names)])
    }
    assert found <= allowed


def test_nothing_asks_whether_a_models_own_code_may_run() -> None:
    """transformers asks on a terminal, and waits, where it is told neither yes nor no."""
    asked = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and re.fullmatch(r"Auto\w+\.from_(pretrained|config)", ast.unparse(call.func))
        and not any(keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) == "False" for keyword in call.keywords)
    ]
    assert asked == []
