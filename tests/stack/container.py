"""Run one service as a container engine would, where there is no engine: inside namespaces of its own.

Called as root by engine.py: `python container.py SPEC.json`. SPEC names the network namespace, the folders to mount, the
user, the environment and the command; this process becomes the command (exec), so its pid is the service's.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
TMPFS = "noexec,nosuid,nodev,mode=1777"
"""What Docker mounts a tmpfs with, unless the file says otherwise."""
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    os.setsid()
    enter_network(spec["network"])
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    check(libc.sethostname(spec["hostname"].encode(), len(spec["hostname"])), "sethostname")
    mount("--make-rprivate", "/")
    root = image(Path(spec["layer"]), spec["opened"])
    for source, target, mode in spec["mounts"]:
        bind(Path(source), root / target.lstrip("/"), mode)
    for entry in spec["tmpfs"]:
        target, _, options = entry.partition(":")
        place = root / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", ",".join(filter(None, (TMPFS, options))), "tmpfs", str(place))
    if spec["read_only"]:
        mount("-o", "remount,ro", str(root))
    os.chroot(root)
    os.chdir(spec["workdir"])
    become = ["setpriv", f"--reuid={spec['uid']}", f"--regid={spec['gid']}", "--clear-groups"]
    if spec["drop"]:
        become += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    environment = dict(spec["environment"])
    preload = environment.pop("LD_PRELOAD", "")  # for the service's user only: what root preloads may leave files that are root's
    command = ["env", f"LD_PRELOAD={preload}", *spec["command"]] if preload else spec["command"]
    os.execvpe("setpriv", [*become, "--", *command], environment)


def enter_network(name: str) -> None:
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    check(libc.setns(fd, CLONE_NEWNET), f"setns {name}")
    os.close(fd)


def image(layer: Path, opened: list[str]) -> Path:
    """This machine's file system as the image, with a writable layer on top that is thrown away."""
    for name in ("upper", "scratch", "root"):
        (layer / name).mkdir(parents=True, exist_ok=True)
    root = layer / "root"
    mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/scratch", str(root))
    for kernel in ("proc", "dev", "sys"):
        mount("--rbind", f"/{kernel}", str(root / kernel))
    for path in map(Path, opened):  # the tests' own Python may live in a private folder
        for folder in reversed([path, *path.parents]):
            inside = root / str(folder).lstrip("/")
            inside.chmod(inside.stat().st_mode | 0o005)
    with (root / "etc/passwd").open("a") as users:  # as the Dockerfile's useradd does
        users.write("airflow:x:50000:50000::/opt/airflow:/bin/sh\n")
    return root


def bind(source: Path, target: Path, mode: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    mount("--bind", str(source), str(target))
    if mode == "ro":
        mount("-o", "remount,bind,ro", str(target))


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
