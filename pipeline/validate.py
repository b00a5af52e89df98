"""Is a published output whole and consistent? Walks from the catalog to every file and says what is wrong where; changes nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import RasterioError

from pipeline.storage import Storage
from pipeline.validate_rasters import header_problems, layout_problems, overview_problems, pixel_problems
from pipeline.vrt import vrt_path
from spexmap import SpexmapError
from stac.publish import CATALOG_PATH, MODEL_RELATION, SHA256_MULTIHASH, collection_path, unsigned
from stac.records import RASTERS
from stac.validation import DocumentValidator

FOLLOWED = ("child", "item", MODEL_RELATION, "predecessor-version")
"""Link relations that lead further into the output."""
HEAD_BYTES = 2**18
"""Of a remote raster, which hold all that its header says: a COG begins with it."""
COLLECTION_PATH = re.compile(r"[^/.][^/]*/collection\.json")
ITEM_PATH = re.compile(r"[^/]+/\d{4}-\d\d-\d\d_\d{4}-\d\d-\d\d/[^/]+/v\d+/[^/]+_v\d+\.json")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong."""

    path: str
    """File below the output."""
    reason: str


@dataclass(frozen=True)
class ValidationReport:
    """What a validation found."""

    files: int
    """Files that were looked at."""
    problems: tuple[Problem, ...]
    """By path."""
    unchecked: tuple[str, ...] = ()
    """Extension schemas that documents name and that were not at hand."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def validate_output(
    storage: Storage | str | Path, deep: bool = False, schemas: Path | None = None, extra_schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> ValidationReport:
    """Return what is wrong with an output.

    Always: documents against the STAC core schemas, links and assets that are not there or are absolute, sizes, raster headers and cloud-optimized
    layout, the chain of versions, the VRT of every period. `deep` reads every byte: checksums, overviews, and whether the rasters of a tile agree.

    Parameters
    ----------
    storage
        The output, or its path or URL.
    schemas
        Folder of extension schemas, see `stac.validation.DocumentValidator`; extensions that are not in it stay unchecked.
    extra_schemas
        More schemas by URL.
    """
    output = storage if isinstance(storage, Storage) else Storage(str(storage))
    walk = _Walk(output, deep, DocumentValidator(schemas, extra_schemas))
    walk.from_catalog()
    return ValidationReport(len(walk.files), tuple(sorted(walk.problems)), tuple(sorted(walk.unchecked)))


class _Walk:
    """One validation under way."""

    def __init__(self, storage: Storage, deep: bool, validator: DocumentValidator) -> None:
        self._storage, self._deep, self._validator = storage, deep, validator
        self._present = set(storage.find())
        self._documents: dict[str, dict[str, Any]] = {}
        self._spoilt: set[str] = set()
        """Folders of tiles with a damaged item: which versions follow each other, and which is current, cannot be told there."""
        self.files: set[str] = set()
        self.problems: set[Problem] = set()
        self.unchecked: set[str] = set()

    def from_catalog(self) -> None:
        """Follow the links from the root, then look at what no document names."""
        self._follow_from(CATALOG_PATH)
        for path in sorted(self._present, key=lambda path: (path.count("/"), path)):  # collections before their items
            if path not in self.files:
                self._unlinked(path)
        items = {path: document for path, document in self._documents.items() if _is_map(document) and self._is_whole(path, document)}
        for path, item in sorted(items.items()):
            with self._reported(path):
                self._item(path, item, items)
        self._vrts(items)

    def _follow_from(self, start: str) -> None:
        """Read the document at `start` and all that it leads to."""
        waiting = [start]
        while waiting:
            path = waiting.pop()
            if path in self.files:
                continue
            self.files.add(path)
            with self._reported(path):
                self._documents[path] = document = self._read(path)
                waiting += self._follow(path, document)
            if path not in self._documents:
                self._spoilt.add(_tile_folder(path))

    def _unlinked(self, path: str) -> None:
        """Report a collection or an item that nothing links; where that is so because what should link it is damaged, look at it all the same."""
        if COLLECTION_PATH.fullmatch(path):
            if CATALOG_PATH in self._documents:
                self._report(path, "is a collection that the catalog does not link; run the job again to bring the catalog up to date")
            self._follow_from(path)
        elif ITEM_PATH.fullmatch(path):
            if collection_path(path.split("/")[0]) not in self._documents or _tile_folder(path) in self._spoilt:
                self._follow_from(path)
                return
            with self._reported(path):
                if self._belongs(path):
                    self._report(path, "is an item that its collection does not link; run the job again to bring the collection up to date")

    def _is_whole(self, path: str, item: Mapping[str, Any]) -> bool:
        """Whether an item has assets and a version that can be looked at; reports where not."""
        assets, properties = item.get("assets"), item.get("properties")
        whole = _is_table(assets) and isinstance(properties, Mapping) and str(properties.get("version")).isdecimal()
        if not whole:
            self._spoilt.add(_tile_folder(path))
            self._report(path, "is damaged: its assets are no objects, or it has no version; delete it and run the job again")
        return whole

    def _series(self, path: str) -> Mapping[str, Any]:
        """Return what the collection of the series that `path` belongs to says of it; empty where it says nothing."""
        series = self._documents.get(collection_path(path.split("/")[0]), {}).get("spexmap:series")
        return series if isinstance(series, Mapping) and isinstance(series.get("grid"), Mapping) else {}

    @contextmanager
    def _reported(self, path: str, what: str = "is damaged") -> Iterator[None]:
        """Report what the file at `path` makes go wrong, and go on."""
        try:
            yield
        except SpexmapError:
            raise
        except FileNotFoundError:
            self._report(path, "is not there")
        except (RasterioError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            self._report(path, f"{what}: {type(error).__name__}: {error}")

    def _belongs(self, path: str) -> bool:
        """Whether an item that nothing links lies on the grid of the collection: items of an earlier series of the same name do not."""
        grid = self._series(path).get("grid", {})
        properties = json.loads(self._storage.read_bytes(path)).get("properties", {})
        lies = properties.get("proj:code"), (properties.get("proj:transform") or [None])[0]
        return not grid or lies == (grid.get("crs"), grid.get("resolution"))

    def _report(self, path: str, reason: str) -> None:
        self.problems.add(Problem(_printable(path), _printable(reason)))

    def _read(self, path: str) -> dict[str, Any]:
        """Return the document at `path` after reporting what of it is not valid; raises where it is none, or has no links that can be followed."""
        document = json.loads(self._storage.read_bytes(path))
        if not isinstance(document, dict):
            raise TypeError(f"it is {type(document).__name__}, not an object")
        for problem in self._validator.problems(document):
            self._report(path, problem)
        self.unchecked.update(_printable(str(schema)) for schema in self._validator.unchecked(document))
        if not isinstance(links := document.get("links"), list) or not all(isinstance(link, Mapping) for link in links):
            raise TypeError("its links are no list of objects")
        return document

    def _follow(self, path: str, document: Mapping[str, Any]) -> Iterator[str]:
        for link in document["links"]:
            relation, href = link.get("rel"), str(link.get("href"))
            if relation == "derived_from":
                if _carries_secret(href):
                    self._report(path, f"has a signed link to {link.get('title')}")
                continue
            target = self._inside(path, href, f"link {relation}")
            if target is None:
                continue
            if target not in self._present:
                self._report(path, f"links {relation} {href}, which is not there")
            elif relation in FOLLOWED:
                yield target

    def _inside(self, path: str, href: str, what: str) -> str | None:
        """Return the path below the output that `href` means, or None after reporting that it leaves the output."""
        target = normpath(join(dirname(path), href))
        if "://" in href or href.startswith("/") or target.startswith(".."):
            self._report(path, f"{what} {href} leads out of the output: it is not opened, and the output cannot be moved")
            return None
        return target

    def _item(self, path: str, item: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> None:
        targets = {}
        for key, asset in sorted(item["assets"].items()):
            target = self._inside(path, str(asset.get("href")), f"asset {key}")
            if target is not None and self._asset_is_there(target, asset):
                targets[key] = target
        missing = [key for key in RASTERS if key not in item["assets"]]
        if missing:
            self._report(path, f"lacks the assets {', '.join(missing)}")
        for key in RASTERS:
            if key in targets:
                self._header(targets[key], key, item)
        self._versions(path, item, items)
        if self._storage.is_local or self._deep:
            self._bytes(path, item, targets)

    def _asset_is_there(self, target: str, asset: Mapping[str, Any]) -> bool:
        self.files.add(target)
        if target not in self._present:
            self._report(target, "is not there")
            return False
        size, said = self._storage.size(target), asset.get("file:size")
        if size != said:
            self._report(target, f"has {size} bytes, its item says {said}")
        return True

    def _header(self, target: str, key: str, item: Mapping[str, Any]) -> None:
        with (
            self._reported(target, "cannot be read as the raster that its item describes"),
            self._storage.local_copy(target, HEAD_BYTES) as copy,
            rasterio.open(copy) as raster,
        ):
            for problem in header_problems(raster, key, item):
                self._report(target, problem)

    def _versions(self, path: str, item: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that an item knows its place in the chain of versions of its tile and period."""
        folder = _tile_folder(path)
        if folder in self._spoilt:
            return
        chain = sorted((int(other["properties"]["version"]), name) for name, other in items.items() if _tile_folder(name) == folder)
        version = int(item["properties"]["version"])
        later = [name for number, name in chain if number > version]
        expected = {"successor-version": later[0], "latest-version": chain[-1][1]} if later else {}
        said = {
            link["rel"]: normpath(join(dirname(path), link["href"]))
            for link in item["links"]
            if link["rel"] in ("successor-version", "latest-version")
        }
        if said != expected or item["properties"].get("deprecated") is not bool(later):
            self._report(path, f"does not say what follows it: version {version} of {len(chain)}; run the job again")

    def _bytes(self, path: str, item: Mapping[str, Any], targets: Mapping[str, str]) -> None:
        with self._local_copies(targets) as local:
            for key in RASTERS:
                if key in local:
                    self._try(targets[key], layout_problems, local[key])
            if not self._deep:
                return
            for key, name in local.items():
                self._checksum(targets[key], name, item["assets"][key].get("file:checksum"))
                if key in RASTERS:
                    self._try(targets[key], overview_problems, name)
            if all(key in local for key in RASTERS):
                self._try(path, pixel_problems, local, item)
                self._explanation(path, item, local)

    def _explanation(self, path: str, item: Mapping[str, Any], local: Mapping[str, str]) -> None:
        """Check what the explanation says against the rasters, where there is one and the collection says which grid they lie on."""
        series = self._series(path)
        if "explanation" in local and series:
            from pipeline.explanation_problems import explanation_problems  # loads PyTorch

            self._try(path.removesuffix(".json") + "_explanation.json", explanation_problems, local, item, series)

    def _try(self, path: str, check: Any, *arguments: Any) -> None:
        """Report what `check` yields, and if it cannot read the file, that."""
        with self._reported(path, "cannot be read"):
            for problem in check(*arguments):
                self._report(path, problem)

    def _checksum(self, target: str, name: str, said: str | None) -> None:
        with Path(name).open("rb") as file:
            found = SHA256_MULTIHASH + hashlib.file_digest(file, "sha256").hexdigest()
        if found != said:
            self._report(target, f"has checksum {found}, its item says {said}")

    @contextmanager
    def _local_copies(self, targets: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Give local paths of an item's files, fetched one tile at a time where the output is remote."""
        if self._storage.is_local:
            yield {key: self._storage.url(target) for key, target in targets.items()}
            return
        with TemporaryDirectory(prefix="spexmap-validate-") as folder:
            local = {key: str(Path(folder) / Path(target).name) for key, target in targets.items()}
            for key, target in targets.items():
                self._storage.get_file(target, Path(local[key]))
            yield local

    def _vrts(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that the VRT of every period lists exactly the rasters of its current items."""
        periods: dict[str, set[str]] = {}
        for path, item in items.items():
            if not item["properties"].get("deprecated"):
                target = self._inside(path, str(item["assets"].get("landcover", {}).get("href")), "asset landcover")
                periods.setdefault(dirname(dirname(dirname(path))), set()).update([target] if target else [])
        for folder, expected in sorted(periods.items()):
            self._vrt(vrt_path(folder), expected)

    def _vrt(self, path: str, expected: set[str]) -> None:
        self.files.add(path)
        if path not in self._present:
            self._report(path, "is not there")
            return
        try:
            root = ElementTree.fromstring(self._storage.read_bytes(path))
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            self._report(path, f"is no VRT: {error}")
            return
        listed = {normpath(join(dirname(path), str(source.text))) for source in root.iter("SourceFilename")}
        for reason, names in (("lacks", expected - listed), ("lists, though it is not current,", listed - expected)):
            for name in sorted(name for name in names if _tile_folder(name) not in self._spoilt):
                self._report(path, f"{reason} {name}")


def _is_map(document: Mapping[str, Any]) -> bool:
    """Whether a document is the item of a tile, not the model's."""
    return document.get("type") == "Feature" and "collection" in document


def _printable(text: str) -> str:
    """Return a text with its halves of characters, which JSON may hold and no stream can write, escaped."""
    return text.encode(errors="backslashreplace").decode()


def _tile_folder(path: str) -> str:
    """Return the folder of all versions of a tile in a period, of a file of one of them."""
    return dirname(dirname(path))


def _is_table(value: Any) -> bool:
    """Whether a value is an object of objects."""
    return isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in value.values())


def _carries_secret(href: str) -> bool:
    return unsigned(href) != href
