"""A network namespace for each service, all on one bridge of this test's own. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess

SUBNET = "10.213.87"
BRIDGE = "talaria-test"


def make() -> None:
    remove()  # what a killed session left
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def attach(service: str, number: int) -> str:
    """A namespace for the service, on the bridge; returns its address."""
    address, inside = f"{SUBNET}.{number + 2}", f"veth{number + 1}"
    run("ip", "netns", "add", namespace(service))
    run("ip", "link", "add", f"{inside}h", "type", "veth", "peer", "name", inside)
    run("ip", "link", "set", f"{inside}h", "master", BRIDGE, "up")
    run("ip", "link", "set", inside, "netns", namespace(service))
    for command in (
        ["addr", "add", f"{address}/24", "dev", inside],
        ["link", "set", inside, "up"],
        ["link", "set", "lo", "up"],
    ):
        run("ip", "-n", namespace(service), *command)
    return address


def namespace(name: str) -> str:
    return f"talaria-{name}"


def remove() -> None:
    for name in run("ip", "netns", "list").split():
        if name.startswith(namespace("")):
            for pid in pids_of(name.removeprefix(namespace(""))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run("ip", "netns", "del", name)
    for link in json.loads(run("ip", "-json", "link", "show", "master", BRIDGE, check=False) or "[]"):
        run("ip", "link", "del", link["ifname"], check=False)  # with its namespace's end, unless that was first
    run("ip", "link", "del", BRIDGE, check=False)


def pids_of(service: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", namespace(service), check=False).split()]


def run(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout
