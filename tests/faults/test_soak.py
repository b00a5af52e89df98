"""If these fail, the harness calls a run whole that is not, or a failure that it found cannot be made again."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from infra.soak.faults import FAULTS, Stage
from infra.soak.harness import Harness
from infra.soak.job import differences, halves, leftovers, published_files
from infra.soak.proxy import KINDS, FaultProxy, Weather
from infra.soak.servers import LoopbackServer, file_handler

VERSION = "demo/2021_2022/t0/v1"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    for name in ("x_landcover.tif", "x_confidence.tif", "x_source.tif", "x_quality.tif", "x_v1.json"):
        (folder / VERSION).mkdir(parents=True, exist_ok=True)
        (folder / VERSION / name).write_text(name)
    (folder / "runs/r").mkdir(parents=True)
    (folder / "runs/r/log").write_text("differs every time")
    return folder


def lose(output: Path) -> None:
    (output / VERSION / "x_source.tif").unlink()


def twice(output: Path) -> None:
    (output / "demo/2021_2022/t0/v2").mkdir()
    (output / "demo/2021_2022/t0/v2/x_v2.json").write_text("again")


def change(output: Path) -> None:
    (output / VERSION / "x_landcover.tif").write_text("x_landcover.tiF")


@pytest.mark.parametrize(("harm", "word"), [(lose, "missing"), (twice, "one too many"), (change, "other bytes")])
def test_what_a_run_did_wrong_is_seen(output: Path, harm: Callable[[Path], None], word: str) -> None:
    expected = published_files(output)
    assert differences(expected, published_files(output)) == [] and halves(output) == []
    harm(output)
    (problem,) = differences(expected, published_files(output))
    assert problem.startswith(word)


def test_half_a_version_is_seen(output: Path) -> None:
    (output / VERSION / "x_v1.json").unlink()
    assert halves(output) == [f"half a version: {VERSION}"]


def test_what_is_left_in_the_working_folder_is_seen(output: Path) -> None:
    assert leftovers(output) == []
    (output / ".work").mkdir()
    (output / ".work/abc.part").write_text("")
    assert leftovers(output) == ["left in .work: .work/abc.part"]


def test_run_of_a_seed_has_the_same_faults_again(tmp_path: Path) -> None:
    def words(seed: int) -> list[list[str]]:
        harness = Harness(tmp_path, seed)
        harness.blocks = ("1,2", "3,4")
        with FaultProxy("http://127.0.0.1:1") as harness.proxy:
            return [[fault.words for fault in harness.choose(number, FAULTS)] for number in range(60)]

    assert words(1) == words(1) != words(2)
    first = Counter(each[0].split(" ")[0] for each in words(1))
    assert min(first.values()) >= 60 // len(FAULTS)


def test_every_fault_says_which_ends_it_may_bring(tmp_path: Path) -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        made = [kind(Stage(proxy, tmp_path, Random(1), ("1,2",))) for kind in FAULTS]
    assert len({fault.name for fault in made}) == len(FAULTS)
    assert all(fault.statuses and fault.words for fault in made)


def asked(proxy: FaultProxy, name: str) -> str:
    """How a request ends: its status, or what went wrong."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)) as connection:
        try:
            connection.request("GET", f"/{name}")
            answer = connection.getresponse()
            body = answer.read()
        except (http.client.HTTPException, OSError) as error:
            return type(error).__name__
    return f"{answer.status} {len(body)} {answer.headers.get('Retry-After', '')}".strip()


def test_proxy_does_the_same_for_the_same_seed_and_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    ends = []
    with LoopbackServer(file_handler(tmp_path)) as files, FaultProxy(files.url) as proxy:
        for _ in range(2):
            proxy.clear(Weather(0.7, KINDS, seed=5, stall_seconds=0.01))
            ends.append([asked(proxy, "a") for _ in range(40)])
        assert set(proxy.done) == {*KINDS, "passed"}
    assert ends[0] == ends[1]
    assert {"200 1000", "429 0 1", "500 0", "IncompleteRead", "ConnectionResetError"} <= set(ends[0])


def test_poison_ends_the_process_that_meets_its_block_and_no_other() -> None:
    program = (
        "import pipeline.segment as s; box = type('B', (), {'top': %d, 'left': 2})\n"
        "try: s.Segmenter._segment(None, None, box, None)\n"
        "except AttributeError: print('alive')"
    )
    folder = Path(__file__).parents[2] / "infra/soak/poison"
    environment = {"PYTHONPATH": f"{folder}:{folder.parents[2]}", "SPEXMAP_SOAK_POISON": "1,2", "PATH": "/usr/bin"}
    ends = [subprocess.run([sys.executable, "-c", program % top], env=environment, capture_output=True, text=True) for top in (1, 5)]
    assert ends[0].returncode == -9
    assert ends[1].stdout.strip() == "alive", ends[1].stderr
