"""Servers and the reference job, started once for all service tests; a server that is not installed skips what needs it and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jobs
import nginx
import pgstac
import pytest
import swift

from pipeline.demo import write_demo

ADVICE = "is not installed here: make test-services"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small simulated catalog and its job."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=7, size=jobs.SIZE)
    return folder


@pytest.fixture(scope="session")
def undisturbed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the job publishes from local files into a local folder, by path."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    run = jobs.spexmap(*jobs.run_arguments(demo, output=str(output)))
    assert run.status == 0, run.err[-3000:]
    return jobs.published(jobs.local_files(output))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[swift.ObjectStore]:
    """A running S3 service with the buckets `scenes` and `maps`."""
    if not swift.is_installed():
        pytest.skip(f"OpenStack Swift {ADVICE}")
    with swift.object_store(tmp_path_factory.mktemp("swift")) as running:
        for bucket in ("scenes", "maps"):
            running.files().mkdir(bucket)
        yield running


@pytest.fixture(scope="session")
def scenes(store: swift.ObjectStore, demo: Path) -> str:
    """URL of the demo's catalog in the S3 service."""
    files = store.files()
    for path in (path for path in demo.rglob("*") if path.is_file() and not {"output", "truth"} & set(path.relative_to(demo).parts)):
        files.put_file(str(path), f"scenes/demo/{path.relative_to(demo).as_posix()}")
    return "s3://scenes/demo/catalog.json"


@pytest.fixture(scope="session")
def web(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nginx.WebServer]:
    """The demo's folder behind a web server."""
    if not nginx.is_installed():
        pytest.skip(f"nginx {ADVICE}")
    with nginx.web_server(demo, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pgstac.StacApi]:
    """A running STAC API without items."""
    if not pgstac.is_installed():
        pytest.skip(f"PostgreSQL with PostGIS or stac-fastapi.pgstac {ADVICE}")
    with pgstac.stac_api(tmp_path_factory.mktemp("pgstac")) as running:
        yield running
