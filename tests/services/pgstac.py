"""A real STAC API: stac-fastapi.pgstac on PostgreSQL with PostGIS, filled with the items that a test gives it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import SERVICES, answers, free_port, missing, program, serving

ENVIRONMENT = SERVICES / "pgstac"
BINARIES = "usr/lib/postgresql/*/bin"
SUPERUSER = "postgres"


@dataclass(frozen=True)
class StacApi:
    """A running API."""

    port: int
    database: str
    folder: Path

    @property
    def url(self) -> str:
        """Its root, to be named as a job's catalog."""
        return f"http://127.0.0.1:{self.port}"

    def load(self, collection: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> None:
        """Put a collection and its items into the database; what is there already is replaced."""
        for table, documents in (("collections", [collection]), ("items", list(items))):
            path = self.folder / f"{table}.ndjson"
            path.write_text("".join(json.dumps(document) + "\n" for document in documents))
            command = [ENVIRONMENT / "bin" / "pypgstac", "load", table, path, "--dsn", self.database, "--method", "upsert"]
            _checked(command)


def is_installed() -> bool:
    """Return whether everything that the service needs is there."""
    has_postgis = any(Path("/").glob("usr/share/postgresql/*/extension/postgis.control"))
    return has_postgis and not missing(ENVIRONMENT / "bin" / "uvicorn", program("initdb", BINARIES), program("postgres", BINARIES))


@contextmanager
def stac_api(folder: Path) -> Iterator[StacApi]:
    """Run database and API; logs lie in `folder`, the database in a folder of its own, for PostgreSQL refuses to run as root."""
    with _database_folder() as (place, user), _database(place, user, folder) as port:
        dsn = f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{SUPERUSER}"
        _checked([ENVIRONMENT / "bin" / "pypgstac", "migrate", "--dsn", dsn])
        api = StacApi(free_port(), dsn, folder)
        command = [ENVIRONMENT / "bin" / "uvicorn", "--factory", "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1", "--port", api.port]
        settings = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": SUPERUSER, "PGPASSWORD": "-", "PGDATABASE": SUPERUSER}
        ready = lambda: answers(f"{api.url}/_mgmt/ping")  # noqa: E731
        with serving("stac-fastapi.pgstac", command, folder / "api.log", ready, settings | {"DB_MAX_CONN_SIZE": "4", "DB_MIN_CONN_SIZE": "1"}):
            yield api


@contextmanager
def _database_folder() -> Iterator[tuple[Path, str | None]]:
    """Give a folder, and the user who owns it where that is not us."""
    user = SUPERUSER if os.geteuid() == 0 else None
    place = Path(tempfile.mkdtemp(prefix="spexmap-postgres-"))
    try:
        if user is not None:
            shutil.chown(place, user, user)
        yield place, user
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _database(place: Path, user: str | None, folder: Path) -> Iterator[int]:
    data, port = place / "data", free_port()
    make = [program("initdb", BINARIES), "-D", data, "-U", SUPERUSER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
    _checked(make, user)
    options = ["-p", port, "-h", "127.0.0.1", "-k", place, "-c", "fsync=off", "-c", "shared_buffers=64MB", "-c", "max_connections=20"]
    is_ready = [program("pg_isready", BINARIES), "-h", "127.0.0.1", "-p", str(port), "-q"]

    def ready() -> bool:
        return subprocess.run([str(part) for part in is_ready], check=False, timeout=30).returncode == 0

    with serving("postgres", [program("postgres", BINARIES) or "postgres", "-D", data, *options], folder / "postgres.log", ready, user=user):
        yield port


def _checked(command: Iterable[Any], user: str | None = None) -> None:
    """Run a command to its end; what it printed is in the error if it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, timeout=120, check=False, cwd="/", user=user, group=user, extra_groups=user and []
    )
    assert done.returncode == 0, f"{list(command)}: {done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}"
