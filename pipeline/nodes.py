"""The nodes of a cluster: what each one has installed, which have a GPU, and how a GPU is waited for."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.models import find_model, fingerprint
from pipeline.errors import JobError, RunInterrupted
from pipeline.faults import without_secrets
from spexmap import SpexmapError

log = logging.getLogger(__name__)

COMPARED = ("spexmap", "torch", "ray", "rasterio", "numpy")
"""Packages of which every node needs the same version."""
ANSWER_SECONDS = 120.0
"""A node that has not said by then what it has installed does not answer."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """A node that lives."""

    id: str
    address: str
    resources: Mapping[str, float]

    @property
    def works(self) -> bool:
        """Whether anything of a run may be placed on it."""
        return self.resources.get("CPU", 0) > 0 or self.resources.get("GPU", 0) > 0


def living_nodes() -> list[Node]:
    """Return the nodes that Ray believes to live."""
    found = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in found]


@dataclass(frozen=True)
class NodeFacts:
    """What has to be the same on every node."""

    python: str
    packages: Mapping[str, str]
    model: str
    """Fingerprint of the files under the model's name on this node, or why there are none."""

    def differences(self, other: NodeFacts) -> list[str]:
        """Return in words what another node has instead of what this one has."""
        mine, theirs = self._flat(), other._flat()
        return [f"{name} {theirs[name]} in place of {mine[name]}" for name in mine if mine[name] != theirs[name]]

    def _flat(self) -> dict[str, str]:
        facts = asdict(self)
        return {"Python": facts["python"], **facts["packages"], "model": without_secrets(facts["model"])}


def node_facts(model: str) -> NodeFacts:
    """Return what this node has."""
    return NodeFacts(platform.python_version(), {name: _version(name) for name in COMPARED}, _fingerprint(model))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _fingerprint(model: str) -> str:
    if "://" in model:
        # Not downloaded for this: every actor compares what it loads.
        return model
    try:
        return fingerprint(find_model(model))[:12]
    except (SpexmapError, OSError) as error:
        return without_secrets(f"none ({error})")


def check_nodes(model: str) -> None:
    """Compare what every node has with what this process has.

    Raises
    ------
    JobError
        A node differs; the message names each one with what it has.
    RunInterrupted
        A node does not answer, or what runs there ends at once.
    """
    here = node_facts(model)
    asked = [(node, _ask(node, model)) for node in living_nodes() if node.works]
    until = time.monotonic() + ANSWER_SECONDS
    wrong = [f"node {node.address} has {words}" for node, ref in asked if (words := _answer(node, ref, here, until))]
    if wrong:
        named = "; ".join(wrong)
        raise JobError(f"the nodes of the cluster differ: {named}; give every node the same image, then run again")


def _ask(node: Node, model: str) -> Any:
    remote: Any = ray.remote
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return remote(num_cpus=0, max_retries=1, scheduling_strategy=there)(node_facts).remote(model)


def _answer(node: Node, ref: Any, here: NodeFacts, until: float) -> str:
    """Return what a node has that differs; nothing where it is the same, or where the node is gone by now."""
    try:
        return ", ".join(here.differences(ray.get(ref, timeout=max(0.1, until - time.monotonic()))))
    except GetTimeoutError:
        raise RunInterrupted(
            f"node {node.address} did not say within {ANSWER_SECONDS:.0f} s what it has installed; end it, or wait for it, and run again"
        ) from None
    except RayError as error:
        if node.id not in {each.id for each in living_nodes()}:
            log.warning("node %s left the cluster", node.address)
            return ""
        if isinstance(error, WorkerCrashedError):
            raise RunInterrupted(
                f"node {node.address} starts no process that lives: is its memory full, or the disk of its folder for temporary files? "
                "Mend it or end it; the same command goes on from here"
            ) from None
        return f"no spexmap that answers ({str(error).strip().splitlines()[-1]})"


def wait_for_gpus(seconds: float, wanted: int) -> int:
    """Return how many GPUs the cluster has, at least one; where it has none it is asked to grow and waited for.

    Raises
    ------
    RunInterrupted
        No GPU came within `seconds`.
    """
    until = time.monotonic() + seconds
    if not _gpus():
        log.info("waiting up to %.0f s for a GPU", seconds)
        _ask_for(wanted)
    while not _gpus():
        if time.monotonic() >= until:
            _ask_for(0)
            raise RunInterrupted(f"no GPU came within {seconds:g} s (--wait-gpu); run again when the cluster has one, or without --wait-gpu on CPUs")
        time.sleep(min(POLL_SECONDS, max(0.0, until - time.monotonic())))
    return _gpus()


def _gpus() -> int:
    return int(sum(node.resources.get("GPU", 0) for node in living_nodes()))


def _ask_for(gpus: int) -> None:
    """Tell the autoscaler, where there is one, how many GPUs are wanted."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1.0}] * gpus)
