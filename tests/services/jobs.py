"""The reference job of the service tests: a small simulated catalog, one command, what it published."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 128
SETTINGS = ("--set", "grid.tile=256", "--block", "256")
"""Several tiles."""
LIMIT = 600
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line that it said, which tells a person what happened."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def start(*arguments: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start `spexmap` with these arguments, under what `prefix` says."""
    command = [*prefix, sys.executable, "-m", "pipeline", *arguments]
    variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command and return how it ended; one that does not is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {LIMIT} s:\n{err[-3000:]}") from None
    return Ended(process.returncode, out, err)


def spexmap(*arguments: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> Ended:
    """Run `spexmap` to its end."""
    return ended(start(*arguments, environment=environment, prefix=prefix))


def run_arguments(demo: Path, **settings: str) -> list[str]:
    """Return the arguments that run the demo's job with other settings; a double underscore is a dot."""
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    return ["run", str(demo / "job.yaml"), *SETTINGS, *overrides]


def local_files(output: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def remote_files(files: Any, output: str) -> dict[str, bytes]:
    """Return every object below a prefix such as ``maps/out`` by its relative path."""
    files.invalidate_cache()
    return {path[len(output) + 1 :]: files.cat_file(path) for path in files.find(output)}


def published(content: Mapping[str, bytes]) -> dict[str, str]:
    """Return the digest of every published file; where a scene's own document lies is the one thing that may differ between catalogs."""
    return {name: hashlib.sha256(_without_places(name, data)).hexdigest() for name, data in content.items() if not name.startswith("runs/")}


def _without_places(name: str, data: bytes) -> bytes:
    if not name.endswith(".json"):
        return data
    document = json.loads(data)
    for link in document.get("links", []):
        if link["rel"] == "derived_from":
            link["href"] = link["title"]
    for scene in document.get("properties", {}).get("spexmap:scenes", []):
        scene["href"] = scene["id"]
    document.get("links", []).sort(key=lambda link: (link["rel"], link["href"]))
    return json.dumps(document, sort_keys=True).encode()
