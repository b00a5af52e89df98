"""What travels with a job to a cluster, and what must not: a path that means something else there, or a secret that everyone there could read."""

from __future__ import annotations

import json
import logging
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from infra.soak.servers import LoopbackServer
from pipeline import submit
from pipeline.cluster import check_outlives_job
from pipeline.errors import JobError, RunInterrupted
from pipeline.job import load_job
from pipeline.submit import make_package

JOB = """
name: styria
region: region.geojson
period: 2023-08-10/2023-08-20
source: {catalog: catalog.json, headers: {Authorization: "Bearer ${TOKEN}"}}
output: out
"""


@contextmanager
def answering(content: bytes | None) -> Iterator[str]:
    """A server that answers everything with `content`, or takes connections and says nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    if content is None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}"
    else:
        with LoopbackServer(Handler) as server:
            yield server.url


def collection(href: str) -> str:
    return json.dumps({"type": "FeatureCollection", "features": [{"assets": {"red": {"href": href}}}]})


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "region.geojson").write_text("{}")
    (tmp_path / "catalog.json").write_text(collection("s3://bucket/red.tif"))
    return tmp_path / "job.yaml"


def test_small_files_travel_and_are_found_there(job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("cluster")
    package = make_package(str(job), ["composite=median"], ["--workers", "2"])
    package.write(there)
    assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()) == [
        "catalog/catalog.json",
        "job.yaml",
        "region/region.geojson",
    ]
    program, command, name, *options = shlex.split(shlex.join(package.command))
    assert (program, command, options[-2:]) == ("spexmap", "run", ["--workers", "2"])
    settings = [options[place + 1] for place, word in enumerate(options) if word == "--set"]
    spec = load_job(there / name, settings)
    assert spec.composite == "median"
    assert Path(str(spec.region)) == there / "region" / "region.geojson"
    assert Path(spec.source.catalog) == there / "catalog" / "catalog.json"
    assert Path(spec.output) == job.parent / "out", "a relative output means the same folder as here"


@pytest.mark.parametrize("content", [collection("./red.tif"), json.dumps({"type": "Catalog", "links": []})])
def test_catalog_of_files_beside_it_stays_and_is_said(job: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    (job.parent / "catalog.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        package = make_package(str(job))
    assert f'source.catalog="{job.parent}/catalog.json"' in package.command
    assert "catalog/catalog.json" not in package.files
    assert "source.catalog" in caplog.text and "every node" in caplog.text


def test_all_parts_of_a_shapefile_travel(job: Path) -> None:
    for suffix in ("shp", "dbf", "shx", "prj"):
        (job.parent / f"place.{suffix}").write_bytes(b"-")
    package = make_package(str(job), ["region=place.shp"])
    assert {"region/place.shp", "region/place.dbf", "region/place.shx", "region/place.prj"} <= package.files.keys()


def test_large_files_do_not_travel(job: Path) -> None:
    with (job.parent / "region.geojson").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(JobError, match=r"region\.geojson alone 60 MB, and at most 50 MB travel"):
        make_package(str(job))


def test_missing_region_is_said_before_anything_is_sent(job: Path) -> None:
    (job.parent / "region.geojson").unlink()
    with pytest.raises(JobError, match=r"region: there is no file .*region\.geojson"):
        make_package(str(job))


@pytest.mark.parametrize(
    "override",
    ["source.headers.Authorization=Bearer abcdefgh", "source.headers={X-Key: abcdefgh}", "source.catalog=https://me:abcdefgh@example.org/stac"],
)
def test_secret_is_not_put_on_the_command_line_of_a_job(job: Path, override: str) -> None:
    with pytest.raises(JobError, match=r"write \$\{NAME\} and set the variable NAME") as refused:
        make_package(str(job), [override])
    assert "abcdefgh" not in str(refused.value)


def test_header_from_the_environment_is_put_in_on_the_cluster(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "correct-horse-battery")
    package = make_package(str(job), ["source.headers.X-Key=${TOKEN}"])
    assert "source.headers.X-Key=${TOKEN}" in package.command
    assert not any("correct-horse" in word for word in package.command)
    assert "'source.headers.X-Key=${TOKEN}'" in shlex.join(package.command), "quoted, or the shell there would put the value in"


@pytest.mark.parametrize(
    ("address", "error", "words"), [("10.0.0.1:6379", JobError, "dashboard"), ("http://127.0.0.1:9", RunInterrupted, "is it up")]
)
def test_address_that_takes_no_jobs_is_a_sentence(job: Path, address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        submit.submit(make_package(str(job)), address)


@pytest.mark.parametrize("answer", [None, b"{}", b"[]", b'{"ray_version": "2.9.0", "version": "4"}', b"<html>"])
def test_server_that_is_silent_or_no_ray_is_a_sentence(job: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr(submit, "ANSWER_SECONDS", 0.5)
    with answering(answer) as address, pytest.raises(RunInterrupted, match=r"no Ray cluster takes jobs at .*; is it up"):
        submit.submit(make_package(str(job)), address)


def test_log_that_is_read_twice_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    printer = submit._Printer()
    printer.feed("one\ntwo\n")
    printer.rewind()
    for piece in ("one\n", "two\nth", "ree\n"):
        printer.feed(piece)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_output_that_ray_would_delete_with_the_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = "/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1/output"
    check_outlives_job(unpacked)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(JobError, match="deleted with it"):
        check_outlives_job(unpacked)
    check_outlives_job("s3://bucket/working_dir/output")
