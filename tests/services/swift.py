"""A real S3 service: OpenStack Swift with its S3 API, one device, one replica, memcached beside it; everything in one folder."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
from processes import SERVICES, answers, free_port, is_listening, missing, program, serving, wait_for

ENVIRONMENT = SERVICES / "swift"
BACKENDS = ("account", "container", "object")
ACCOUNT, USER, SECRET = "test", "tester", "correct-horse-battery"

SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
"""

BACKEND_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
log_level = WARNING

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
fallocate_reserve = 0
"""

PIPELINE = "catch_errors gatekeeper healthcheck cache bulk s3api tempauth copy slo dlo proxy-server"

PROXY_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
workers = 0
log_level = WARNING

[pipeline:main]
pipeline = {pipeline}

[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:door]
paste.filter_factory = door:filter_factory
conditional = {conditional}
"""

DOOR = """
import itertools
import time

def filter_factory(settings, conditional="yes", **local):
    numbers = itertools.count()
    def wrap(application):
        def answer(environ, start_response):
            if environ["REQUEST_METHOD"] == "PUT" and "/.work/lease" in environ["PATH_INFO"]:
                time.sleep(0.3 + 0.1 * next(numbers))
            if environ["REQUEST_METHOD"] == "PUT" and conditional == "no":
                environ.pop("HTTP_IF_NONE_MATCH", None)
            return application(environ, start_response)
        return answer
    return wrap
"""
"""Middleware behind the S3 API, so that signatures still hold. A lease takes a while to be written, each one longer than the last: several takers
have looked before one has written, and each finds its own token if it looks at once. Where conditions are off, the store accepts a conditional write
and ignores its condition, as some do."""


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 service."""

    port: int
    key: str
    secret: str
    folder: Path

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to use it, through s3fs and through GDAL."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_S3_ENDPOINT": f"127.0.0.1:{self.port}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def files(self) -> fsspec.AbstractFileSystem:
        """Return a file system for the tests themselves."""
        return fsspec.filesystem("s3", key=self.key, secret=self.secret, endpoint_url=self.endpoint, skip_instance_cache=True)


def is_installed() -> bool:
    """Return whether everything that the service needs is there."""
    return not missing(ENVIRONMENT / "bin" / "swift-proxy-server", program("memcached"))


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Run the service with everything it keeps in `folder`."""
    ports = {kind: free_port() for kind in (*BACKENDS, "memcached")}
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    for kind in BACKENDS:
        (folder / f"{kind}.conf").write_text(BACKEND_CONF.format(kind=kind, port=ports[kind], user=getpass.getuser(), folder=folder))
        _ring(folder, kind, ports[kind])
    with ExitStack() as stack:
        stack.enter_context(_memcached(folder, ports["memcached"]))
        for kind in BACKENDS:
            stack.enter_context(_server(folder, kind, kind, ports[kind]))
        yield stack.enter_context(_proxy(folder, "proxy", ports["memcached"], PIPELINE))


@contextmanager
def other_door(store: ObjectStore, conditional: bool) -> Iterator[ObjectStore]:
    """Give the same service through another door, where leases are written slowly, and perhaps without regard to the condition of a write."""
    port = free_port()
    (store.folder / "door.py").write_text(DOOR)
    pipeline = PIPELINE.replace("tempauth", "tempauth door")
    with _memcached(store.folder, port), _proxy(store.folder, f"door-{port}", port, pipeline, conditional) as door:
        yield door


def _memcached(folder: Path, port: int) -> AbstractContextManager[object]:
    command = [program("memcached") or "memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", getpass.getuser()]
    return serving("memcached", command, folder / f"memcached-{port}.log", lambda: is_listening(port))


@contextmanager
def _proxy(folder: Path, name: str, memcached: int, pipeline: str, conditional: bool = True) -> Iterator[ObjectStore]:
    store = ObjectStore(free_port(), f"{ACCOUNT}:{USER}", SECRET, folder)
    settings = {"port": store.port, "user": getpass.getuser(), "folder": folder, "memcached": memcached, "pipeline": pipeline}
    text = PROXY_CONF.format(**settings, conditional="yes" if conditional else "no", account=ACCOUNT, name=USER, secret=SECRET)
    (folder / f"{name}.conf").write_text(text)
    with _server(folder, "proxy", name, store.port):
        wait_for(lambda: answers(f"{store.endpoint}/healthcheck"), "swift's health")
        yield store


def _server(folder: Path, kind: str, name: str, port: int) -> AbstractContextManager[object]:
    command = [ENVIRONMENT / "bin" / f"swift-{kind}-server", folder / f"{name}.conf", "-v"]
    return serving(f"swift-{kind}-server", command, folder / f"{name}.log", lambda: is_listening(port), {"PYTHONPATH": str(folder)})


def _ring(folder: Path, kind: str, port: int) -> None:
    device = ["--region", "1", "--zone", "1", "--ip", "127.0.0.1", "--port", str(port), "--device", "d1", "--weight", "1"]
    for arguments in (["create", "4", "1", "1"], ["add", *device], ["rebalance"]):
        builder = [ENVIRONMENT / "bin" / "swift-ring-builder", folder / f"{kind}.builder"]
        subprocess.run([str(part) for part in (*builder, *arguments)], check=True, capture_output=True, timeout=60)
