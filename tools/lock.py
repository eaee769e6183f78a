"""Write uv.lock and requirements.lock from pyproject.toml (`make lock`); with --check, say whether they are in step with it.

requirements.lock holds uv.lock's versions for pip, as constraints: `pip install -c requirements.lock -e '.[train]'`. Both name
PyPI alone, whatever indexes this machine is set up with.
"""

from __future__ import annotations

import os
import subprocess
import sys

from install import ROOT, InstallError, find_uv, pip_settings, run

HEADER = "# For pip, as constraints: the versions of uv.lock. Made by `make lock`.\n"
EVERYWHERE = " ; python_full_version < '3.15' and implementation_name == 'cpython' and sys_platform == 'linux'"
"""The environments of pyproject.toml, which uv repeats on every line."""
INDEXES = {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_INDEX_STRATEGY"}


def main(check: bool) -> None:
    """Raises InstallError; with `check`, also where a file is not what `make lock` would write."""
    settings = {**pip_settings(), **os.environ}
    uv = find_uv(settings)
    public = {name: value for name, value in settings.items() if name not in INDEXES}
    run([uv, "lock", "--quiet", *(["--check"] if check else [])], public)
    command = [
        uv,
        "export",
        "--quiet",
        "--frozen",
        "--all-extras",
        "--no-hashes",
        "--no-emit-project",
        "--no-annotate",
        "--no-header",
    ]
    versions = subprocess.run(command, cwd=ROOT, env=public, stdout=subprocess.PIPE, text=True, check=True).stdout
    versions = versions.replace(f"{EVERYWHERE}\n", "\n")
    constraints = ROOT / "requirements.lock"
    if not check:
        constraints.write_text(HEADER + versions)
    elif constraints.read_text() != HEADER + versions:
        raise InstallError("requirements.lock is not made from uv.lock; run make lock.")


if __name__ == "__main__":
    try:
        main(check=sys.argv[1:] == ["--check"])
    except InstallError as error:
        sys.exit(f"talaria: {error}")
