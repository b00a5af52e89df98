"""Several hosts on one machine: a network namespace each, joined by a switch in a namespace of its own, so that nothing is reached from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

NETWORK = "10.77.0"


class Hosts:
    """Hosts with an address each, which can be cut off and joined again."""

    def __init__(self) -> None:
        self._mark = f"spx{os.getpid()}"
        self._names: list[str] = []
        self._add_namespace("switch")
        self._inside("switch", "ip", "link", "add", "switch", "type", "bridge")
        self._inside("switch", "ip", "link", "set", "switch", "up")

    @staticmethod
    def missing() -> str:
        """Return why there can be none here, else nothing."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return "network namespaces need root and iproute2"
        made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
        return "" if made.returncode == 0 else "network namespaces are not allowed here"

    def add(self, name: str) -> str:
        """Make a host and return its address."""
        self._add_namespace(name)
        number = len(self._names)
        port = f"p{number}"
        ends = ("name", port, "netns", self._namespace("switch"), "type", "veth", "peer", "name", "eth0", "netns", self._namespace(name))
        _run("ip", "link", "add", *ends)
        self._inside("switch", "ip", "link", "set", port, "master", "switch")
        self._inside("switch", "ip", "link", "set", port, "up")
        self._inside(name, "ip", "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            self._inside(name, "ip", "link", "set", link, "up")
        # Programs ask which address they have by asking for the way to the world.
        self._inside(name, "ip", "route", "add", "default", "dev", "eth0")
        return f"{NETWORK}.{number}"

    def prefix(self, name: str) -> list[str]:
        """Return what a command begins with to run on a host."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def cut_off(self, name: str) -> None:
        """Pull the cable of a host: nothing is refused, nothing answers."""
        self._inside("switch", "ip", "link", "set", f"p{self._names.index(name) + 1}", "down")

    def join(self, name: str) -> None:
        """Put the cable in again."""
        self._inside("switch", "ip", "link", "set", f"p{self._names.index(name) + 1}", "up")

    def close(self) -> None:
        """Take all hosts away."""
        for name in self._names:
            _run("ip", "netns", "delete", self._namespace(name))

    def _namespace(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _add_namespace(self, name: str) -> None:
        _run("ip", "netns", "add", self._namespace(name))
        self._names.append(name)

    def _inside(self, name: str, *command: str) -> None:
        _run(*self.prefix(name), *command)


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Have hosts until the block ends."""
    made = Hosts()
    try:
        yield made
    finally:
        made.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
