"""A run on a real Ray cluster: a head without cores, a CPU node, a node with two logical GPUs, token authentication on.

If these fail, a map depends on where it was computed, a lost node costs a map, or a scheduler does not learn how its job ended.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jobs
import pytest
from hosts import Hosts, hosts
from processes import wait_for
from ray_nodes import BIN, RayCluster, RayNode, Resources, ray_cluster

from infra.soak import disks

pytestmark = pytest.mark.services

CPU, GPU = Resources(2), Resources(2, 2)
SMALL_BLOCKS = ("--block", "128")
"""So many that what is lost in the middle of them was needed."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(0, {"cpu": CPU, "gpu": GPU}) as running:
        yield running


def submission(demo: Path, cluster: RayCluster, output: Path) -> list[str]:
    return ["submit", *jobs.run_arguments(demo, output=str(output))[1:], "--address", cluster.dashboard]


def record_of(output: Path) -> Mapping[str, Any]:
    (path,) = output.glob("runs/*/run.json")
    record: Mapping[str, Any] = json.loads(path.read_text())
    return record


def log_of(output: Path) -> str:
    (path,) = output.glob("runs/*/log")
    return path.read_text()


def in_the_middle(output: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a block is staged or a tile is published."""

    def begun() -> bool:
        return any(output.glob(".work/*/[!.]*.arrow")) or any(output.glob("*/*/*/v1/*.tif"))

    wait_for(begun, "a run that has begun to map", jobs.LIMIT, process)  # type: ignore[arg-type]


def test_submitted_job_publishes_what_the_local_run_does(demo: Path, cluster: RayCluster, undisturbed: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    run = jobs.spexmap(*submission(demo, cluster, output), environment=cluster.environment)
    assert run.status == 0, run.out[-3000:] + run.err[-3000:]
    assert jobs.published(jobs.local_files(output)) == undisturbed
    assert set(record_of(output)["cluster"]["actors"]) == {cluster.nodes["gpu"].address}
    assert "2 GPUs: 2 pinned actors, 2 cores elsewhere read for them" in run.out
    token = cluster.environment["RAY_AUTH_TOKEN"]
    assert token not in run.out + run.err
    assert not any(token.encode() in content for content in jobs.local_files(output).values())


def test_job_submitted_by_ray_itself_publishes_the_same(demo: Path, cluster: RayCluster, undisturbed: dict[str, str], tmp_path: Path) -> None:
    output, folder = tmp_path / "output", tmp_path / "job"
    folder.mkdir()
    for name in ("job.yaml", "region.geojson"):
        shutil.copy(demo / name, folder / name)
    command = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", str(folder), "--", "spexmap", "run", "job.yaml"]
    command += [*jobs.SETTINGS, "--set", f"output={output}", "--set", f"source.catalog={demo / 'catalog.json'}"]
    run = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=jobs.LIMIT, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    assert jobs.published(jobs.local_files(output)) == undisturbed


def test_status_of_the_run_is_that_of_the_command(demo: Path, cluster: RayCluster, tmp_path: Path) -> None:
    run = jobs.spexmap(*submission(demo, cluster, tmp_path / "o"), "--set", "source.collection=none-such", environment=cluster.environment)
    assert run.status == 2
    assert "none-such" in run.out


def test_cluster_without_the_token_is_a_sentence(demo: Path, cluster: RayCluster, tmp_path: Path) -> None:
    other = {**cluster.environment, "RAY_AUTH_TOKEN": "f" * 64}
    run = jobs.spexmap(*submission(demo, cluster, tmp_path / "o"), environment=other)
    assert run.status == 2
    assert "RAY_AUTH_TOKEN" in run.sentence and "Traceback" not in run.err


def test_terminated_submission_stops_its_job_and_goes_on_later(demo: Path, cluster: RayCluster, undisturbed: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = jobs.start(*submission(demo, cluster, output), environment=cluster.environment)
    in_the_middle(output, command)
    command.send_signal(signal.SIGTERM)
    assert jobs.ended(command).status == 143
    again = jobs.spexmap(*submission(demo, cluster, output), environment=cluster.environment)
    assert again.status == 0, again.out[-3000:]
    assert len(list((output / "runs").iterdir())) == 1
    assert jobs.published(jobs.local_files(output)) == undisturbed


def kill_raylet(node: RayNode) -> None:
    node.raylet.kill()


FAULTS: list[tuple[str, Callable[[RayNode], None]]] = [
    ("cpu", kill_raylet),
    ("gpu", kill_raylet),
    ("gpu", RayNode.freeze),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_what_is_lost_in_the_middle_changes_nothing(
    demo: Path, cluster: RayCluster, undisturbed: dict[str, str], tmp_path: Path, name: str, fault: Callable[[RayNode], None]
) -> None:
    """A new machine takes the place of a lost one; the run goes on with it, or where it stopped when it is started again."""
    output = tmp_path / "output"
    arguments = [*jobs.run_arguments(demo, output=str(output)), *SMALL_BLOCKS, "--address", cluster.address]
    run = jobs.start(*arguments, environment=cluster.environment)
    in_the_middle(output, run)
    fault(cluster.nodes[name])
    # A frozen node is left frozen while its place is taken.
    lost = cluster.nodes.pop(name)
    cluster.wait_joined(cluster.start_node(name, CPU if name == "cpu" else GPU))
    try:
        end = jobs.ended(run)
    finally:
        lost.end()
    assert end.status in (0, 3), end.err[-3000:]
    if end.status == 3:
        end = jobs.spexmap(*arguments, environment=cluster.environment)
    assert end.status == 0, end.err[-3000:]
    assert jobs.published(jobs.local_files(output)) == undisturbed
    assert "Traceback" not in end.err
    assert name == "cpu" or "a segmenting actor died" in log_of(output)


BALLAST = """
import os, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=0, label_selector={"name": "full"}, max_restarts=-1, max_task_retries=-1)
class Ballast:
    def fill(self):
        self.kept = []
        while True:
            try:
                self.kept.append(ray.put(bytes(4 << 20)))
            except ray.exceptions.RayError as error:
                return f"{type(error).__name__} with {len(self.kept)} objects kept"

ballast = Ballast.remote()
ray.get(ballast.__ray_ready__.remote())
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
print(ray.get(ballast.fill.remote()), flush=True)
time.sleep(3600)
"""


def test_disk_that_is_full_under_spilling_changes_nothing(demo: Path, cluster: RayCluster, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """On the node that reads, others' objects fill the object store and the disk behind it; when they are gone the same command makes the rest."""
    if reason := disks.missing():
        pytest.skip(reason)
    output, go = tmp_path / "output", tmp_path / "go"
    arguments = [*jobs.run_arguments(demo, output=str(output)), "--block", "64", "--address", cluster.address]
    cluster.nodes.pop("cpu").end()
    with disks.small_disk(cluster.next_folder("full"), "100m"):
        try:
            cluster.wait_joined(cluster.start_node("full", CPU))
            command = [sys.executable, "-c", BALLAST, cluster.address, str(go)]
            with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as ballast:
                assert ballast.stdout is not None
                run = jobs.start(*arguments, environment=cluster.environment)
                in_the_middle(output, run)
                held = cluster.nodes["gpu"].actors
                for actor in held:
                    actor.suspend()
                go.touch()
                assert "OutOfDiskError" in next((line for line in ballast.stdout if "objects kept" in line), "no object went in")
                assert run.poll() is None, "the run ended before the disk was full"
                for actor in held:
                    actor.resume()
                end = jobs.ended(run)
                ballast.kill()
            assert end.status in (0, 1, 3), end.err[-3000:]
            assert "Traceback" not in end.err
            if end.status:
                end = jobs.spexmap(*arguments, environment=cluster.environment)
            assert end.status == 0, end.err[-3000:]
        finally:
            cluster.nodes.pop("full").end()
            cluster.wait_joined(cluster.start_node("cpu", CPU))
    assert jobs.published(jobs.local_files(output)) == undisturbed


def test_node_that_is_cut_off_and_comes_back_changes_nothing(demo: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """Its processes go on computing and writing for a while; nothing of it is in the map twice, and nothing is missing."""
    if reason := Hosts.missing():
        pytest.skip(reason)
    output = tmp_path / "output"
    with hosts() as network, ray_cluster(0, {"cpu": CPU, "gpu": GPU}, hosts=network) as cluster:
        arguments = [*jobs.run_arguments(demo, output=str(output)), *SMALL_BLOCKS, "--address", cluster.address]
        at_head = network.prefix(cluster.nodes["head"].host)
        run = jobs.start(*arguments, environment=cluster.environment, prefix=at_head)
        in_the_middle(output, run)
        lost = cluster.nodes.pop("gpu")
        network.cut_off(lost.host)
        try:
            cluster.wait_joined(cluster.start_node("gpu", GPU))
            wait_for(lambda: bool(cluster.nodes["gpu"].actors) or run.poll() is not None, "an actor on the new node", jobs.LIMIT)
            network.join(lost.host)
            end = jobs.ended(run)
            if end.status == 3:
                end = jobs.spexmap(*arguments, environment=cluster.environment, prefix=at_head)
        finally:
            lost.end()
    assert end.status == 0, end.err[-3000:]
    assert jobs.published(jobs.local_files(output)) == undisturbed
    assert "Traceback" not in end.err
    assert "a segmenting actor died" in log_of(output)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster without a GPU, one node of which has another rasterio."""
    place = tmp_path_factory.mktemp("odd") / "rasterio-9.9.9.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: rasterio\nVersion: 9.9.9\n")
    with ray_cluster(1, {"odd": Resources(1, environment={"PYTHONPATH": str(place.parent)})}) as running:
        yield running


def test_gpu_that_never_comes_ends_the_run_after_the_time_given(demo: Path, odd: RayCluster, tmp_path: Path) -> None:
    arguments = [*jobs.run_arguments(demo, output=str(tmp_path / "o")), "--address", odd.address, "--wait-gpu", "2"]
    run = jobs.spexmap(*arguments, environment=odd.environment)
    assert run.status == 3
    assert "no GPU came within 2 s" in run.sentence


def test_node_with_another_version_is_named_and_nothing_is_mapped(demo: Path, odd: RayCluster, tmp_path: Path) -> None:
    run = jobs.spexmap(*jobs.run_arguments(demo, output=str(tmp_path / "o")), "--address", odd.address, environment=odd.environment)
    assert run.status == 2
    assert f"node {odd.nodes['odd'].address} has rasterio 9.9.9 in place of" in run.sentence
    assert not list(tmp_path.rglob("*.tif"))
