"""Install what uv.lock names into an environment: `python tools/install.py .venv train airflow`.

Runs before anything is installed, so it needs Python's standard library alone. uv comes from the PATH, or else from the package
index into .uv/. Where the machine has no NVIDIA GPU (or with TORCH=cpu), torch's CPU build stands in for the one of the lock, and
none of CUDA's packages is downloaded. docs/installation.md has the variables.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = "uv==0.13.9"
"""What is installed where there is none; pyproject.toml says which others do."""
RECORD = "talaria-installed.json"
CUDA = ("nvidia-", "cuda-", "triton")
"""How the names of the packages begin that only CUDA needs."""
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"
FROM_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
}
"""pip's settings and uv's variables of the same meaning: uv reads nothing of pip's."""


class InstallError(Exception):
    """What went wrong, and what to do about it, in one sentence."""


def main(environment: Path, extras: set[str]) -> None:
    """Bring `environment` to the lock's versions, with `extras` and those that it has already.

    Raises InstallError.
    """
    began = time.monotonic()
    settings = {**pip_settings(), **os.environ}
    uv = find_uv(settings)
    cuda = wants_cuda(settings)
    record = environment / RECORD
    if record.exists():
        extras = extras | set(json.loads(record.read_text())["extras"])
    if cuda:
        extras = extras | {"gpu"}
    if not (environment / "bin" / "python").exists():
        run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], settings)
    build = "CUDA" if cuda else "CPU"
    print(f"Installing {', '.join(sorted(extras))} into {environment} (torch for {build}) ...", flush=True)
    install(uv, environment, extras, cuda, settings)
    seconds = time.monotonic() - began
    record.write_text(json.dumps({"extras": sorted(extras), "seconds": seconds, "finished": time.time()}))
    print(f"Installed in {seconds:.0f} s.", flush=True)


def pip_settings() -> dict[str, str]:
    """Return uv's variables for what pip is told by its files and its environment on this machine."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found = {}
    for line in listed.stdout.splitlines():  # global.index-url='https://...', from the weakest source to the strongest
        name, _, value = line.partition("=")
        if variable := FROM_PIP.get(name.rpartition(".")[2]):
            found[variable] = str(ast.literal_eval(value))
    if listed.returncode:  # a Python without pip
        for name, variable in FROM_PIP.items():
            if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
                found[variable] = value
    if "UV_FIND_LINKS" in found:
        found["UV_FIND_LINKS"] = ",".join(found["UV_FIND_LINKS"].split())
    if "UV_INDEX" in found:
        found["UV_INDEX"] = " ".join(found["UV_INDEX"].split())
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's own; the lock's hashes keep a stranger's package out
    return found


def find_uv(settings: Mapping[str, str]) -> str:
    """Return the uv of the PATH if it is recent enough, else the project's own, installed now where it is missing."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["required-version"]
    least = tuple(int(part) for part in re.findall(r"\d+", required))
    for candidate in (shutil.which("uv"), ROOT / ".uv" / "bin" / "uv"):
        if candidate and version_of(str(candidate)) >= least:
            return str(candidate)
    print("Putting uv into .uv ...", flush=True)
    run([sys.executable, "-m", "venv", str(ROOT / ".uv")], settings)
    run([str(ROOT / ".uv" / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", UV], settings)
    return str(ROOT / ".uv" / "bin" / "uv")


def version_of(uv: str) -> tuple[int, ...]:
    """Return (0, 13, 9), or an empty tuple where the command does not work."""
    try:
        said = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])


def wants_cuda(settings: Mapping[str, str]) -> bool:
    """Return what TORCH says (`cpu` or `cuda`), or whether there is an NVIDIA driver."""
    choice = settings.get("TORCH") or "auto"
    if choice not in ("auto", "cpu", "cuda"):
        raise InstallError(f"TORCH={choice}: expected auto, cpu or cuda.")
    return choice == "cuda" or (choice == "auto" and Path("/proc/driver/nvidia/version").exists())


def install(uv: str, environment: Path, extras: set[str], cuda: bool, settings: Mapping[str, str]) -> None:
    """Install the lock's versions and this project, and remove what the lock does not name."""
    lock = {package["name"]: package.get("version") for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    instead = [] if cuda or not extras & {"train", "bench"} else [f"torch=={lock['torch']}+cpu"]
    skipped = [] if cuda else [name for name in lock if name == "torch" or name.startswith(CUDA)]
    locked, torch = environment / "locked.txt", environment / "torch.txt"
    command = [uv, "export", "--quiet", "--frozen", "--no-annotate", "--project", str(ROOT), "--output-file", str(locked)]
    command += [word for extra in sorted(extras) for word in ("--extra", extra)]
    run(command + [word for name in skipped for word in ("--no-emit-package", name)], settings)
    torch.write_text("".join(f"{line}\n" for line in instead))
    command = [uv, "pip", "sync", "--quiet", "--python", str(environment), str(locked), *([str(torch)] if instead else [])]
    if not instead:
        run(command, settings)
        return
    try:  # what this machine's indexes and folders have comes first: PyTorch's own index may be out of reach
        run(command, settings)
    except InstallError as first:
        try:
            run([*command, "--torch-backend", "cpu"], settings)
        except InstallError as second:
            raise InstallError(f"{first}\nWith {PYTORCH_CPU}: {second}") from None


def run(command: list[str], settings: Mapping[str, str]) -> None:
    """Run a command in the project's folder; raises InstallError with what it wrote."""
    done = subprocess.run(command, cwd=ROOT, env=dict(settings), stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command[:3])} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute(), set(sys.argv[2:]))
    except InstallError as error:
        sys.exit(f"talaria: {error}")
