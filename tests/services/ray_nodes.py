"""A real Ray cluster of several nodes on this machine: a raylet each, ports on loopback, token authentication on, ended by process id."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

import psutil
from hosts import Hosts
from processes import answers, free_port, wait_for

BIN = Path(sys.executable).parent
STORE_BYTES = 100 * 2**20
START_SECONDS = 120.0
HEALTH = {"RAY_health_check_initial_delay_ms": "20000", "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}
HEALTH["RAY_health_check_failure_threshold"] = "3"
HEALTH |= {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}
"""A node that does not answer counts as lost after some ten seconds, not a minute, as by default; calls to it end after twenty, not seven minutes."""


@dataclass(frozen=True)
class Resources:
    """What a node offers, whatever the machine has."""

    cpus: int
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that this node alone has."""


@dataclass
class RayNode:
    """One node: what `ray start --block` started, in a session of its own."""

    name: str
    host: str
    """Its name among the hosts, where it has one of its own."""
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return the node's processes whose command line holds any of these words; without words all of them."""
        found = [process for process in _family(self.process.pid) if not words or any(word in _command(process) for word in words)]
        return sorted(found, key=lambda process: process.pid)

    @property
    def address(self) -> str:
        """Of loopback, its own."""
        return next(word.partition("=")[2] for word in map(str, self.process.args) if word.startswith("--node-ip-address="))  # type: ignore[union-attr]

    @property
    def raylet(self) -> psutil.Process:
        """The node's raylet."""
        (found,) = [process for process in self.processes("raylet/raylet") if "raylet/raylet" in process.cmdline()[0]]
        return found

    @property
    def actors(self) -> list[psutil.Process]:
        """Processes that hold a segmenting actor."""
        return self.processes("ray::Segment")

    def freeze(self) -> None:
        """Stop everything of the node where it is, as a machine that hangs does."""
        for process in self.processes():
            process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kill everything of the node and wait until it is gone."""
        for process in (found := self.processes()):
            _kill(process)
        psutil.wait_procs(found, timeout=20)
        self.process.wait(20)


class RayCluster:
    """A head, and nodes that join it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], hosts: Hosts | None = None) -> None:
        self.folder, self.hosts = folder, hosts
        self.port, self.dashboard_port = free_port(), free_port()
        self.environment = {
            **os.environ,
            **HEALTH,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "90",
            "OMP_WAIT_POLICY": "PASSIVE",
            **environment,
        }
        self.nodes: dict[str, RayNode] = {}
        self._started = 0

    @property
    def address(self) -> str:
        """Of the cluster, for `ray.init` and ``--address`` of ``spexmap run``."""
        return f"{self.nodes['head'].address}:{self.port}"

    @property
    def dashboard(self) -> str:
        """Of the dashboard, which takes jobs."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self, cpus: int) -> RayNode:
        """Start the node that keeps the cluster's state and takes jobs."""
        dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"]
        node = self._start("head", ["--head", f"--port={self.port}", f"--temp-dir={self.folder / 'head'}", *dashboard], Resources(cpus))
        if self.hosts is None:
            self._wait(node, lambda: answers(f"{self.dashboard}/api/version"))
        else:
            self.wait_joined(node)
        return node

    def start_node(self, name: str, resources: Resources) -> RayNode:
        """Start a node that joins."""
        return self._start(name, [f"--address={self.address}", f"--temp-dir={self.next_folder(name)}"], resources)

    def next_folder(self, name: str) -> Path:
        """Return where the node that is started next keeps its files, and what does not fit its object store."""
        return self.folder / f"{name}-{self._started}"

    def wait_joined(self, *nodes: RayNode) -> None:
        """Wait until these nodes say that they run."""
        for node in nodes:
            self._wait(node, lambda node=node: b"Ray runtime started" in node.log.read_bytes())

    def close(self) -> None:
        """End every node, the head last."""
        for node in reversed(self.nodes.values()):
            node.end()

    def _start(self, name: str, arguments: list[str], resources: Resources) -> RayNode:
        self._started += 1
        log = self.folder / f"{name}-{self._started}.log"
        host = f"{name}-{self._started}"
        # Each node has its own address of loopback, as machines have; Ray would replace 127.0.0.1 by an address of the network.
        address = f"127.0.0.{self._started + 1}" if self.hosts is None else self.hosts.add(host)
        command = [] if self.hosts is None else self.hosts.prefix(host)
        command += [str(BIN / "ray"), "start", *arguments, f"--node-ip-address={address}", f"--num-cpus={resources.cpus}"]
        command += [f"--num-gpus={resources.gpus}", f"--object-store-memory={STORE_BYTES}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--labels=name={name}", "--disable-usage-stats", "--block"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment | dict(resources.environment),
                start_new_session=True,
            )
        self.nodes[name] = RayNode(name, host, process, log)
        return self.nodes[name]

    @staticmethod
    def _wait(node: RayNode, ready: object) -> None:
        try:
            wait_for(ready, f"Ray node {node.name}", START_SECONDS, node.process)  # type: ignore[arg-type]
        except AssertionError as error:
            raise AssertionError(f"{error}; {node.log}:\n{node.log.read_text(errors='replace')[-3000:]}") from None


@contextmanager
def ray_cluster(
    head_cpus: int, nodes: Mapping[str, Resources], environment: Mapping[str, str] | None = None, hosts: Hosts | None = None
) -> Iterator[RayCluster]:
    """Run a cluster until the block ends, each node on a host of its own where there are `hosts`.

    The folder's name is short, for paths of sockets must be.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = RayCluster(folder, environment or {}, hosts)
    try:
        cluster.start_head(head_cpus)
        cluster.wait_joined(*[cluster.start_node(name, resources) for name, resources in nodes.items()])
        yield cluster
    finally:
        cluster.close()
        rmtree(folder, ignore_errors=True)


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, also those whose parent is gone but that are of its session."""
    try:
        root = psutil.Process(pid)
        found = {process.pid: process for process in [root, *root.children(recursive=True)]}
    except psutil.NoSuchProcess:
        found = {}
    for process in psutil.process_iter():
        try:
            if process.pid not in found and os.getsid(process.pid) == pid:
                found[process.pid] = process
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return list(found.values())


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
