"""Storage that fails for a while is asked again, storage that refuses is not, and neither lets a secret out: against a server that speaks S3."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import s3fs
from tenacity import wait_none

from pipeline import faults
from pipeline.errors import StorageRefused, StorageUnavailable
from pipeline.storage import Storage

SECRET = "wJalrXUtnFEMI-secret"
RESET, SHORT = 0, -1
"""Faults that are no status: the connection is cut before an answer; half of what was sent is kept."""


@dataclass
class Bucket:
    """One bucket behind HTTP; the next faults are answered first."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            bucket.requests.append(self.command)
            status, code = bucket.faults.pop(0) if bucket.faults else (200, "")
            if status == RESET:
                self.close_connection = True
                self.connection.close()
            elif status == SHORT:
                bucket.objects[self._key()] = body[: len(body) // 2]
                self._answer(200)
            elif status != 200:
                self._answer(status, f"<Error><Code>{code}</Code><Message>{code} for {SECRET}</Message></Error>".encode())
            else:
                getattr(self, f"_{self.command.lower()}")(body)

        def _key(self) -> str:
            return unquote(urlsplit(self.path).path).removeprefix("/bucket").lstrip("/")

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _put(self, body: bytes) -> None:
            bucket.objects[self._key()] = body
            self._answer(200)

        def _get(self, body: bytes) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                self._list(query.get("prefix", [""])[0])
            elif self._key() in bucket.objects:
                self._answer(200, bucket.objects[self._key()])
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _list(self, prefix: str) -> None:
            listed = "".join(
                f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>1</ETag><LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
                for key, data in sorted(bucket.objects.items())
                if key.startswith(prefix)
            )
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())

        def _head(self, body: bytes) -> None:
            data = bucket.objects.get(self._key())
            self._answer(404 if data is None else 200, data or b"")

        def _post(self, body: bytes) -> None:
            for part in body.decode().split("<Key>")[1:]:
                bucket.objects.pop(part.split("</Key>")[0], None)
            self._answer(200, b"<DeleteResult></DeleteResult>")

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = _serve

        def log_message(self, *arguments: Any) -> None:
            """Tests print nothing."""

    return Handler


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in {
        "AWS_ENDPOINT_URL_S3": bucket.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(faults, "wait_random_exponential", lambda **options: wait_none())
    s3fs.S3FileSystem.clear_instance_cache()
    yield bucket
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


@pytest.fixture
def storage(bucket: Bucket) -> Storage:
    return Storage("s3://bucket/out")


PASSING = [(429, "TooManyRequests"), (503, "SlowDown"), (500, "InternalError"), (502, "BadGateway"), (RESET, "")]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault[0]))
def test_what_passes_is_tried_again(storage: Storage, bucket: Bucket, fault: tuple[int, str]) -> None:
    bucket.faults = [fault]
    storage.write_bytes("a/b", b"content")
    bucket.faults = [fault]
    assert storage.read_bytes("a/b") == b"content"
    bucket.faults = [fault]
    assert storage.exists("a/b")
    bucket.faults = [fault]
    assert storage.find("a") == ["a/b"]
    bucket.faults = [fault]
    storage.delete("a")
    assert bucket.objects == {}
    assert not bucket.faults


def test_more_failures_than_the_client_repeats_are_outlasted(storage: Storage, bucket: Bucket) -> None:
    bucket.faults = [(503, "SlowDown")] * 5
    storage.write_bytes("a", b"content")
    assert bucket.objects == {"out/a": b"content"}


def test_upload_that_arrives_short_is_sent_again(storage: Storage, bucket: Bucket, tmp_path: Any) -> None:
    bucket.faults = [(SHORT, "")]
    storage.write_bytes("item.json", b"0123456789")
    assert storage.read_bytes("item.json") == b"0123456789"
    (tmp_path / "raster.tif").write_bytes(b"x" * 1000)
    bucket.faults = [(SHORT, "")]
    storage.put_file(tmp_path / "raster.tif", "raster.tif")
    assert storage.size("raster.tif") == 1000


def test_store_that_keeps_failing_is_given_up_with_a_sentence(
    storage: Storage, bucket: Bucket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.faults = [(503, "SlowDown")] * 1000
    monkeypatch.setattr(faults, "ATTEMPTS", 3)
    with (
        caplog.at_level(logging.WARNING, "pipeline"),
        pytest.raises(StorageUnavailable, match="cannot write s3://bucket/out/a: the store kept failing") as caught,
    ):
        storage.write_bytes("a", b"1")
    assert caught.value.exit_status == 3
    assert caplog.text.count("trying again") == faults.ATTEMPTS - 1
    assert SECRET not in caplog.text + str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [((403, "AccessDenied"), "check the credentials"), ((404, "NoSuchBucket"), "make the bucket")],
    ids=["forbidden", "no bucket"],
)
def test_what_lasts_fails_at_once(storage: Storage, bucket: Bucket, fault: tuple[int, str], advice: str) -> None:
    bucket.faults = [fault] * 1000
    with pytest.raises(StorageRefused, match=advice) as caught:
        storage.write_bytes("a", b"1")
    assert len(bucket.requests) == 1
    assert SECRET not in str(caught.value)


def test_file_that_is_not_there_is_not_waited_for(storage: Storage, bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("nothing")
    assert len(bucket.requests) <= 3


def test_every_wait_of_the_client_has_a_limit(storage: Storage) -> None:
    """A server that accepts and never answers must not stop a run for ever."""
    storage.exists("a")
    config = storage.fs.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (faults.CONNECT_SECONDS, faults.READ_SECONDS)
    assert storage.fs.retries == 1


def test_server_that_never_answers_is_given_up(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(faults, "READ_SECONDS", 0.2)
        monkeypatch.setattr(faults, "ATTEMPTS", 2)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageUnavailable, match="kept failing"):
            storage.read_bytes("a")


@pytest.mark.parametrize(
    "text",
    [
        "GET https://bucket/a?X-Amz-Signature=abcdef0123&x=1",
        f"the key {SECRET} is unknown",
        "cannot open ftp://user:passw0rd@host/maps",
        "https://a.blob/x?sv=1&sig=abcdef0123",
        "no file 'https://host/x?hdnea=abcdef0123', nor /x?a=1&api_key=abcdef0123 there",
    ],
)
def test_secrets_are_masked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    shown = faults.without_secrets(text)
    assert shown != text
    assert not [word for word in ("abcdef0123", SECRET, "passw0rd") if word in shown]
