"""A map in a bucket, from scenes in a bucket: what a team gets that keeps everything in object storage.

The output is made by two drivers that start at the same time, as a scheduler does that fires twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from swift import ObjectStore

pytestmark = [pytest.mark.services, pytest.mark.cluster]

OUTPUT = "s3://maps/styria"


@pytest.fixture(scope="module")
def arguments(demo: Path, scenes: str) -> list[str]:
    return jobs.run_arguments(demo, source__catalog=scenes, output=OUTPUT)


@pytest.fixture(scope="module")
def drivers(arguments: list[str], store: ObjectStore) -> list[jobs.Ended]:
    """The two drivers, the one that ran first."""
    started = [jobs.start(*arguments, environment=store.environment) for _ in range(2)]
    return sorted((jobs.ended(driver) for driver in started), key=lambda driver: driver.status)


@pytest.fixture(scope="module")
def content(drivers: list[jobs.Ended], store: ObjectStore) -> dict[str, bytes]:
    assert drivers[0].status == 0, drivers[0].err[-3000:]
    return jobs.remote_files(store.files(), "maps/styria")


def test_of_two_drivers_one_runs_and_the_other_says_who_holds_the_output(drivers: list[jobs.Ended]) -> None:
    assert [driver.status for driver in drivers] == [0, 4], drivers
    assert "s3://maps/styria is held by another run (process " in drivers[1].sentence
    assert "Traceback" not in drivers[1].err


def test_every_published_file_equals_that_of_a_local_run(content: dict[str, bytes], undisturbed: dict[str, str]) -> None:
    found = jobs.published(content)
    assert found == undisturbed
    assert sum(name.endswith("_landcover.tif") for name in found) > 1
    assert not any(name.startswith(".work") for name in content)


def test_rerun_does_nothing(arguments: list[str], content: dict[str, bytes], store: ObjectStore) -> None:
    files = store.files()
    before = {path: info["LastModified"] for path, info in files.find("maps/styria", detail=True).items()}
    again = jobs.spexmap(*arguments, environment=store.environment)
    assert again.status == 0, again.err[-3000:]
    assert "nothing to do" in again.err
    files.invalidate_cache()
    assert {path: info["LastModified"] for path, info in files.find("maps/styria", detail=True).items()} == before


def test_status_validate_and_explain_read_the_bucket(content: dict[str, bytes], store: ObjectStore) -> None:
    (run,) = json.loads(jobs.spexmap("status", OUTPUT, "--json", environment=store.environment).out)
    assert (run["state"], run["left"], run["failed"]) == ("done", 0, [])
    validated = jobs.spexmap("validate", OUTPUT, "--deep", environment=store.environment)
    assert validated.status == 0, validated.out + validated.err
    west, south, east, north = json.loads(content["demo/collection.json"])["extent"]["spatial"]["bbox"][0]
    place = f"{(west + east) / 2},{(south + north) / 2}"
    explained = jobs.spexmap("explain", OUTPUT, "--at", place, "--json", environment=store.environment)
    assert explained.status == 0, explained.err
    assert json.loads(explained.out)


def test_the_secret_is_in_nothing_that_a_run_leaves_or_says(drivers: list[jobs.Ended], content: dict[str, bytes], store: ObjectStore) -> None:
    for driver in drivers:
        assert store.secret not in driver.out + driver.err
    assert not [name for name, data in content.items() if store.secret.encode() in data]


@pytest.mark.parametrize(
    ("changed", "output", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "not-the-right-secret"}, OUTPUT, "check the credentials"),
        ({}, "s3://no-such-bucket/out", "make the bucket"),
    ],
)
def test_what_lasts_is_said_at_once_in_a_sentence(
    demo: Path, scenes: str, store: ObjectStore, changed: dict[str, str], output: str, words: str
) -> None:
    refused = jobs.spexmap(*jobs.run_arguments(demo, source__catalog=scenes, output=output), environment=store.environment | changed)
    assert refused.status == 2, refused.err
    assert words in refused.sentence
    assert "Traceback" not in refused.err
    assert "not-the-right-secret" not in refused.err


def test_rasters_open_in_place(content: dict[str, bytes], store: ObjectStore) -> None:
    """What a viewer does with the published map: GDAL reads the VRT of the period from the bucket."""
    (path,) = [name for name in content if name.endswith("landcover.vrt")]
    program = f"import rasterio; print(rasterio.open('/vsis3/maps/styria/{path}').read(1).max())"
    read = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | store.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert read.returncode == 0, read.stderr
    assert int(read.stdout) > 0
