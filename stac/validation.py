"""STAC documents against their JSON schemas, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

CORE = {"Feature": "item", "Collection": "collection", "Catalog": "catalog"}
EXTENSION_HOST = "https://stac-extensions.github.io"


class DocumentValidator:
    """Validates documents against the STAC core schemas, which come with pystac, and against those extension schemas that it was given.

    Parameters
    ----------
    schemas
        Folder with ``<extension>/v<version>/schema.json``, as published; None checks the core only.
    extra
        More schemas by the URL that documents name.
    """

    def __init__(self, schemas: Path | None = None, extra: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._contents = {**get_local_schema_cache(), **dict(_read_folder(schemas)), **(extra or {})}
        resources = ((url, Resource.from_contents(contents, default_specification=DRAFT7)) for url, contents in self._contents.items())
        self._registry: Any = Registry().with_resources(resources)
        self._validators: dict[str, Draft7Validator] = {}

    def problems(self, document: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the document, one sentence a schema; empty where it is valid."""
        return [f"{url}: {problem}" for url in self._schemas_of(document) if (problem := self._problem(url, document))]

    def unchecked(self, document: Mapping[str, Any]) -> list[str]:
        """Return the extension schemas that the document names and this validator does not hold."""
        return [url for url in document.get("stac_extensions", ()) if url not in self._contents]

    def _schemas_of(self, document: Mapping[str, Any]) -> Iterator[str]:
        kind, version = CORE.get(str(document.get("type"))), document.get("stac_version")
        yield f"https://schemas.stacspec.org/v{version}/{kind}-spec/json-schema/{kind}.json"
        yield from (url for url in document.get("stac_extensions", ()) if url in self._contents)

    def _problem(self, url: str, document: Mapping[str, Any]) -> str | None:
        if url not in self._contents:
            return f"no schema for type {document.get('type')} of STAC {document.get('stac_version')}; write STAC 1.1.0"
        if url not in self._validators:
            self._validators[url] = Draft7Validator(self._contents[url], registry=self._registry)
        error = best_match(self._validators[url].iter_errors(document))
        return None if error is None else f"{error.json_path}: {error.message[:300]}"


def _read_folder(schemas: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if schemas is None:
        return
    for path in sorted(schemas.glob("*/v*/*schema.json")):
        name = "/".join(path.relative_to(schemas).parts)
        host = "https://proj.org/schemas" if name.startswith("proj/") else EXTENSION_HOST
        yield f"{host}/{name.removeprefix('proj/')}", json.loads(path.read_bytes())
