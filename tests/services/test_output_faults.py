"""The store of the output fails in the middle of whole runs. If these fail, a nightly run hangs, takes half a map for a whole one, or ends with words
that nobody can act on.

Scenes, catalog and output lie in one real S3 service; the run reaches it through a proxy that spoils its calls.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import jobs
import pytest
import s3fs
from swift import ObjectStore
from tenacity import wait_none

from infra.soak.proxy import KINDS, FaultProxy, Weather
from pipeline import faults
from pipeline.errors import AccessLost, StorageUnavailable
from pipeline.storage import Storage

pytestmark = [pytest.mark.services, pytest.mark.cluster]

OUTPUT = "s3://maps/stopped"
OF_OUTPUT = "/maps"
"""What the paths of all calls to the output's bucket have in them."""
FOR_EVER = 3600.0
IMPATIENT = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 2}}), "SPEXMAP_STORAGE_SECONDS": "2"}
EXPIRED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>'


@pytest.fixture
def door(store: ObjectStore) -> Iterator[FaultProxy]:
    """The way to the service, which can be spoiled."""
    with FaultProxy(store.endpoint) as proxy:
        yield proxy


def environment(store: ObjectStore, door: FaultProxy) -> dict[str, str]:
    """What a process has in its environment to use the service through the proxy."""
    return replace(store, port=door.port).environment


def from_the_first_raster_on(door: FaultProxy, act: Callable[[], object]) -> None:
    """Do `act` when the first raster is about to be written."""
    happened = threading.Event()

    def look(path: str) -> None:
        if path.endswith("_landcover.tif") and not happened.is_set():
            happened.set()
            act()

    door.on_request = look


def test_run_gets_over_failing_calls(demo: Path, scenes: str, store: ObjectStore, door: FaultProxy, undisturbed: dict[str, str]) -> None:
    """Of all calls, to catalog, scenes and output alike, 5 % fail; every limit is the default."""
    short = tuple(kind for kind in KINDS if kind != "stall")
    door.clear(Weather(0.05, (*short, *short, "stall"), seed=5, stall_seconds=FOR_EVER))
    run = jobs.spexmap(*jobs.run_arguments(demo, source__catalog=scenes, output="s3://maps/weather"), environment=environment(store, door))
    assert run.status == 0, run.err[-3000:]
    assert jobs.published(jobs.remote_files(store.files(), "maps/weather")) == undisturbed
    assert sum(door.done[kind] for kind in short) > 5, door.done


def test_run_is_stopped_by_a_store_that_stalls_and_by_credentials_that_run_out_and_goes_on_each_time(
    demo: Path, scenes: str, store: ObjectStore, door: FaultProxy, undisturbed: dict[str, str]
) -> None:
    arguments = jobs.run_arguments(demo, source__catalog=scenes, output=OUTPUT)
    from_the_first_raster_on(door, lambda: door.clear(Weather(1.0, ("stall",), only=OF_OUTPUT, stall_seconds=FOR_EVER)))
    stalled = jobs.spexmap(*arguments, environment=environment(store, door) | IMPATIENT)
    assert_stopped(stalled, store, "the store kept failing", f"http://127.0.0.1:{door.port}/")
    assert door.done["stall"] > 0

    # The same credentials read the scenes: no tile may be made without scenes that were only not allowed to be read.
    door.clear()
    door.refusal = (403, EXPIRED)
    from_the_first_raster_on(door, lambda: setattr(door, "guard", lambda url, headers: False))
    expired = jobs.spexmap(*arguments, environment=environment(store, door))
    assert_stopped(expired, store, "check the credentials, which have run out")
    assert "going on with run" in expired.err

    good = jobs.spexmap(*arguments, environment=store.environment)
    assert good.status == 0, good.err[-3000:]
    content = jobs.remote_files(store.files(), OUTPUT.removeprefix("s3://"))
    assert jobs.published(content) == undisturbed
    (log,) = [data.decode() for name, data in content.items() if name.startswith("runs/") and name.endswith("/log")]
    # Of the stopped attempts only what was written while the store still answered.
    assert "pipeline.session: map: " in log
    assert store.secret not in "".join(each.out + each.err for each in (stalled, expired, good))
    assert not [name for name, data in content.items() if store.secret.encode() in data]


def assert_stopped(run: jobs.Ended, store: ObjectStore, *words: str) -> None:
    """Assert that a run ended with 3 and a sentence that says what failed, where, why and what to do, and that no tile counts as done."""
    assert run.status == 3, run.err[-3000:]
    for each in (f"cannot write {OUTPUT}/", "_landcover.tif", *words, "run the same command again"):
        assert each in run.sentence
    assert "Traceback" not in run.err
    assert not [name for name in jobs.remote_files(store.files(), OUTPUT.removeprefix("s3://")) if name.endswith("_v1.json")]


@pytest.fixture
def storage(store: ObjectStore, door: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """An output behind the proxy, held by this process."""
    for name, value in environment(store, door).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 3}})
    monkeypatch.setattr(faults, "wait_random_exponential", lambda **options: wait_none())
    with fresh_clients():
        yield Storage("s3://maps/calls", fence=AlwaysOurs())


class AlwaysOurs:
    """The fence of a run that nobody follows."""

    def check(self) -> None:
        """Pass."""


@contextmanager
def fresh_clients() -> Iterator[None]:
    """Keep clients apart from those of other tests, which have other limits."""
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_made_again_whatever_was_done_to_it(storage: Storage, door: FaultProxy, kind: str, tmp_path: Path) -> None:
    """One call in five fails, those of which only the answer is lost among them: nothing is written twice, missed or torn."""
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 2**12)
    door.clear(Weather(0.2, (kind,), seed=2, stall_seconds=FOR_EVER))
    storage.write_bytes(f"{kind}/a", b"content")
    storage.put_file(big, f"{kind}/b")
    assert storage.create_bytes(f"{kind}/c", b"first") or storage.read_bytes(f"{kind}/c") == b"first"
    assert not storage.create_bytes(f"{kind}/c", b"second")
    assert storage.read_bytes(f"{kind}/b") == big.read_bytes()
    assert storage.size(f"{kind}/a") == 7
    with storage.local_copy(f"{kind}/b") as copy:
        assert copy.read_bytes() == big.read_bytes()
    with storage.local_copy(f"{kind}/b", head=1000) as copy:
        assert copy.stat().st_size == big.stat().st_size
        assert copy.read_bytes()[:1000] == big.read_bytes()[:1000] and not any(copy.read_bytes()[1000:])
    storage.delete(f"{kind}/a")
    assert storage.find(kind) == [f"{kind}/b", f"{kind}/c"]
    assert storage.read_bytes(f"{kind}/c") == b"first"


@pytest.mark.parametrize("refusal", [(403, EXPIRED), (400, EXPIRED)], ids=["forbidden", "as Amazon answers"])
@pytest.mark.parametrize("call", ["write", "read", "look", "list", "delete"])
def test_credentials_that_ran_out_are_named_in_every_call(storage: Storage, door: FaultProxy, refusal: tuple[int, bytes], call: str) -> None:
    storage.write_bytes("there", b"1")
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: storage.write_bytes("there", b"2"),
        "read": lambda: storage.read_bytes("there"),
        "look": lambda: storage.exists("there"),
        "list": lambda: storage.find("folder"),
        "delete": lambda: storage.delete("there"),
    }
    door.refusal, door.guard = refusal, lambda url, headers: False
    with pytest.raises(AccessLost, match=r"check the credentials.* run the same command again") as caught:
        calls[call]()
    assert caught.value.exit_status == 3


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and what is sent on them, up to the end of the headers, and never say a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("size", [100, 14 * 2**20], ids=["record", "raster"])
def test_upload_that_a_server_does_not_take_is_given_up(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A server that neither asks for the body nor reads it: the client by itself would wait for ever."""
    with silent_server() as url, fresh_clients():
        for name, value in (store.environment | {"SPEXMAP_STORAGE_SECONDS": "0", "AWS_ENDPOINT_URL_S3": url}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.5}})
        with pytest.raises(StorageUnavailable, match="cannot write s3://maps/silent/file: the store kept failing"):
            Storage("s3://maps/silent").write_bytes("file", b"x" * size)
