"""If these fail, a password that a job was given can be read by everyone who may read its map, its logs or its errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.soak.proxy import FaultProxy, Weather
from infra.soak.servers import LoopbackServer, Tokens, file_handler, token_handler
from pipeline.demo import write_demo

pytestmark = pytest.mark.cluster

HEADER, SIGNATURE, LISTED, ACCESS = "hea-5ECRET-der", "sas-5ECRET-", "lis-5ECRET-ted", "aws-5ECRET-key"
STORAGE = "http://soak.blob.core.windows.net/c"


@dataclass
class Left:
    """What a run left behind."""

    status: int
    output: Path
    said: str
    ray: Path


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo whose items name themselves and their files by signed URLs, as some catalogs do; one file of them is not there."""
    folder = tmp_path_factory.mktemp("signed")
    write_demo(folder, size=128)
    items = [path for path in sorted(folder.rglob("*.json")) if json.loads(path.read_text()).get("type") == "Feature"]
    for path in items:
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            place = (path.parent / asset["href"]).resolve().relative_to(folder.resolve())
            asset["href"] = f"{STORAGE}/{place}?se=2030-01-01T00:00:00Z&sig={LISTED}"
        item["links"] = [link for link in item.get("links", []) if link["rel"] != "self"]
        item["links"].append({"rel": "self", "href": f"{STORAGE}/{path.name}?hdnea={LISTED}"})
        path.write_text(json.dumps(item))
    (items[0].parent / "SCL.tif").unlink()
    return folder


@pytest.fixture(scope="module")
def left(catalog: Path) -> Iterator[Left]:
    """A run with secrets of every kind, against servers that fail now and then."""
    tokens = Tokens(lifetime=600, secret=SIGNATURE)
    weather = Weather(0.1, ("429", "500", "503", "reset", "truncate"), seed=1)
    short = Path(tempfile.mkdtemp(prefix="sx-", dir="/tmp"))
    with (
        LoopbackServer(file_handler(catalog)) as files,
        LoopbackServer(token_handler(tokens)) as issuer,
        FaultProxy(files.url, weather, guard=lambda url, headers: tokens.accepts(url)) as storage,
        FaultProxy(files.url, weather, guard=lambda url, headers: headers.get("authorization") == f"Bearer {HEADER}") as api,
    ):
        environment = os.environ | {
            "TOKEN": HEADER,
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": ACCESS,
            "AWS_SESSION_TOKEN": ACCESS,
            "PC_SDK_SAS_URL": f"{issuer.url}/token",
            "http_proxy": storage.url,
            "no_proxy": "127.0.0.1,localhost",
            "RAY_TMPDIR": str(short),
            "TMPDIR": str(short),
        }
        output = short / "output"
        settings = {"output": output, "source.catalog": f"{api.url}/catalog.json", "source.headers": "{Authorization: 'Bearer ${TOKEN}'}"}
        command = [sys.executable, "-m", "pipeline", "run", str(catalog / "job.yaml"), *(f"--set={key}={value}" for key, value in settings.items())]
        ended = subprocess.run([*command, "--workers=1"], env=environment, capture_output=True, text=True, timeout=900)
    yield Left(ended.returncode, output, ended.stdout + ended.stderr, short)
    shutil.rmtree(short)


def contents(left: Left) -> Iterator[tuple[str, str]]:
    """Yield everything that the run left, by name."""
    yield "stdout and stderr", left.said
    for path in left.ray.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(left.ray))
            yield name, path.read_bytes().decode(errors="replace")
            if path.suffix == ".parquet":
                yield f"{name}, decoded", json.dumps(pq.read_table(path).to_pylist(), default=str)


def test_run_got_over_it(left: Left) -> None:
    assert left.status == 0, left.said
    assert "is left out" in left.said and "SCL.tif" in left.said
    assert list(left.output.glob("*/*/*/v1/*_landcover.tif"))


@pytest.mark.parametrize("secret", [HEADER, SIGNATURE, LISTED, ACCESS], ids=["header", "signature", "signature of the catalog", "AWS"])
def test_secret_is_in_nothing_that_a_run_leaves(left: Left, secret: str) -> None:
    everything = list(contents(left))
    assert any(name.endswith("plan.parquet, decoded") for name, _ in everything)
    assert any("session_" in name and name.endswith((".out", ".err", ".log")) for name, _ in everything)
    assert [name for name, text in everything if secret in text] == []


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_secret_is_in_no_log_of_a_catalog_that_is_asked_again(catalog: Path, tmp_path: Path, kind: str) -> None:
    """Urllib3 names what it asks for again; so does GDAL."""
    with LoopbackServer(file_handler(catalog)) as files, FaultProxy(files.url, Weather(0.6, (kind,), only="catalog.json")) as api:
        settings = {"output": tmp_path / "o", "source.catalog": f"{api.url}/catalog.json?key={LISTED}", "period": "1999-01-01/1999-01-02"}
        command = [sys.executable, "-m", "pipeline", "run", str(catalog / "job.yaml"), *(f"--set={key}={value}" for key, value in settings.items())]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert api.done[kind] > 0
    assert LISTED not in ended.stderr + ended.stdout


def test_secret_is_in_no_error_of_a_catalog_that_refuses(catalog: Path, tmp_path: Path) -> None:
    with LoopbackServer(file_handler(catalog)) as files, FaultProxy(files.url, guard=lambda url, headers: False) as api:
        settings = {"output": tmp_path / "o", "source.catalog": f"{api.url}/catalog.json?sig={LISTED}", "source.headers": "{X-Key: '${TOKEN}'}"}
        command = [sys.executable, "-m", "pipeline", "run", str(catalog / "job.yaml"), *(f"--set={key}={value}" for key, value in settings.items())]
        ended = subprocess.run(command, env=os.environ | {"TOKEN": HEADER}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert "403" in ended.stderr
    assert HEADER not in ended.stderr + ended.stdout and LISTED not in ended.stderr + ended.stdout
