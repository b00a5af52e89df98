"""A small sound world to spoil, catalog and job, and the ways of spoiling it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import yaml
from affine import Affine
from pyproj import Transformer
from shapely.geometry import box, mapping

from pipeline.demo import write_demo
from pipeline.region import to_degrees
from stac.geometry import bounds_of

BEST = "S2A_32TQR_20210712_0_L2A_SIMULATED"
"""Cloudless, so that every pixel of the sound world comes from it; its publisher removed the offset."""
OLDER = "S2A_32TQR_20210612_0_L2A_SIMULATED"
"""First by id; 40 % cloud."""
EDGE = "S2B_32TQR_20210627_0_L2A_SIMULATED"
"""Mostly cloud, cut by the swath's edge."""
COLLECTION = "sentinel-2-l2a"

JOB: dict[str, Any] = {
    "name": "corpus",
    "region": [11.989, 45.946, 11.9995, 45.9545],
    "period": "2021-06-12/2021-07-12",
    "source": {"catalog": "catalog.json", "collection": COLLECTION, "max_cloud_cover": None},
    "grid": {"crs": "EPSG:32632"},
    "output": "output",
}


@dataclass
class World:
    """A catalog of three scenes of one tile, 128 x 128 pixels, and a job for it, in a folder of their own."""

    root: Path
    job: dict[str, Any]
    servers: list[ThreadingHTTPServer] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path) -> World:
        """Write the simulated catalog without its eastern tile and with six of its bands."""
        write_demo(root, seed=7, size=128)
        shutil.rmtree(root / "truth")
        for folder in (root / COLLECTION).glob("*_33TTL_*"):
            shutil.rmtree(folder)
        world = cls(root, json.loads(json.dumps(JOB)))
        for name in (BEST, OLDER, EDGE):
            for key, file in {"rededge2": "B06", "rededge3": "B07", "nir08": "B8A", "swir22": "B12"}.items():
                world.raster(file, name).unlink()
                drop(f"assets.{key}", name)(world)
        world.edit(world.collection, lambda c: c.update(links=[link for link in c["links"] if "33TTL" not in link["href"]]))
        return world

    def copy(self, root: Path) -> World:
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("output"))
        return World(root, json.loads(json.dumps(self.job)))

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.json"

    @property
    def collection(self) -> Path:
        return self.root / COLLECTION / "collection.json"

    def item(self, name: str = BEST) -> Path:
        return self.root / COLLECTION / name / f"{name}.json"

    def raster(self, file: str, name: str = BEST) -> Path:
        return self.root / COLLECTION / name / f"{file}.tif"

    def document(self, name: str = BEST) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.item(name).read_text())
        return loaded

    def documents(self) -> list[dict[str, Any]]:
        """Return all items with absolute hrefs, as an item collection holds them."""
        found = [self.document(name) for name in (BEST, OLDER, EDGE)]
        for document in found:
            for asset in document["assets"].values():
                asset["href"] = str(self.root / COLLECTION / document["id"] / asset["href"])
        return found

    def edit(self, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    def write_items(self, content: Any, name: str = "items.geojson") -> None:
        """Make an item collection of any content the job's catalog."""
        (self.root / name).write_text(json.dumps(content))
        self.set("source.catalog", name)

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key of the job."""
        *sections, last = key.split(".")
        target = self.job
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value

    def write_job(self) -> Path:
        path = self.root / "job.yaml"
        if not (self.root / "job.as-it-is").exists():
            path.write_text(yaml.safe_dump(self.job, sort_keys=False))
        return path

    def write_raw_job(self, content: bytes) -> None:
        """Write the job file itself, byte for byte."""
        (self.root / "job.yaml").write_bytes(content)
        (self.root / "job.as-it-is").touch()

    def serve(self, answer: Callable[[str], bytes | None] = lambda path: None) -> str:
        """Serve the folder over HTTP, `answer` first; a POST is answered 501. Returns the URL."""
        handler = partial(_Handler, answer=answer, directory=str(self.root))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def __init__(self, *args: Any, answer: Callable[[str], bytes | None], **options: Any) -> None:
        self._answer = answer
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        content = self._answer(self.path)
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


Spoil = Callable[[World], Any]
Numbers = np.ndarray[Any, np.dtype[Any]]


def nothing(world: World) -> None:
    """Leave the world as it is."""


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(world: World) -> None:
        for each in spoils:
            each(world)

    return spoil


# ---------------------------------------------------------------------------------------------------------------- jobs and documents


def job(**changes: Any) -> Spoil:
    """Set keys of the job; ``__`` stands for a dot."""

    def spoil(world: World) -> None:
        for key, value in changes.items():
            world.set(key.replace("__", "."), value)

    return spoil


def raw_job(content: str | bytes) -> Spoil:
    return lambda world: world.write_raw_job(content if isinstance(content, bytes) else content.encode())


def job_line(line: str) -> Spoil:
    """Append a line to the sound job file."""

    def spoil(world: World) -> None:
        world.write_raw_job((yaml.safe_dump(world.job, sort_keys=False) + line + "\n").encode())

    return spoil


def region(content: Any, name: str = "region.geojson") -> Spoil:
    """Write a region file and make it the job's."""

    def spoil(world: World) -> None:
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        (world.root / name).write_bytes(data)
        world.set("region", name)

    return spoil


def item(change: Callable[[dict[str, Any]], Any], *names: str) -> Spoil:
    """Change the items `names`, by default the best scene's."""

    def spoil(world: World) -> None:
        for name in names or (BEST,):
            world.edit(world.item(name), change)

    return spoil


def put(key: str, value: Any, *names: str) -> Spoil:
    """Set a dotted key of an item; a colon is part of a name."""

    def change(document: dict[str, Any]) -> None:
        *sections, last = key.split(".")
        target = document
        for section in sections:
            target = target[section]
        target[last] = value

    return item(change, *names)


def drop(key: str, *names: str) -> Spoil:
    """Delete a dotted key of an item."""

    def change(document: dict[str, Any]) -> None:
        *sections, last = key.split(".")
        target = document
        for section in sections:
            target = target[section]
        del target[last]

    return item(change, *names)


def link(relation: str, href: str) -> Spoil:
    """Add a link to the collection."""
    return lambda world: world.edit(world.collection, lambda c: c["links"].append({"rel": relation, "href": href}))


def catalog_is(content: str | bytes) -> Spoil:
    return lambda world: world.catalog.write_bytes(content if isinstance(content, bytes) else content.encode())


# ---------------------------------------------------------------------------------------------------------------- rasters


def content(file: str, change: Callable[[bytes], bytes], *names: str) -> Spoil:
    """Change the bytes of a raster file."""

    def spoil(world: World) -> None:
        for name in names or (BEST,):
            path = world.raster(file, name)
            path.write_bytes(change(path.read_bytes()))

    return spoil


def gone(file: str, *names: str) -> Spoil:
    def spoil(world: World) -> None:
        for name in names or (BEST,):
            world.raster(file, name).unlink()

    return spoil


def pixels(file: str, change: Callable[[Numbers], Numbers], *names: str, **profile: Any) -> Spoil:
    """Change the numbers (H, W) of a raster, and keys of its profile; ``None`` takes a key out, ``write`` says how the numbers are written."""

    def spoil(world: World) -> None:
        for name in names or (BEST,):
            rewrite(world.raster(file, name), change, profile)

    return spoil


def rewrite(path: Path, change: Callable[[Numbers], Numbers], changes: Mapping[str, Any]) -> None:
    changes = dict(changes)
    write = changes.pop("write", _write)
    with rasterio.open(path) as source:
        numbers, before = change(source.read(1)), source.profile
    profile = {"driver": "GTiff", "crs": before["crs"], "transform": before["transform"], "nodata": before["nodata"], "dtype": numbers.dtype}
    profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "count": 1}
    profile |= {"height": numbers.shape[0], "width": numbers.shape[1], **changes}
    if callable(profile["transform"]):
        profile["transform"] = profile["transform"](before["transform"])
    path.unlink()
    with rasterio.open(path, "w", **{key: value for key, value in profile.items() if value is not None}) as target:
        write(target, numbers)


def _write(target: Any, numbers: Numbers) -> None:
    target.write(numbers, 1)


def header(file: str, *names: str, **changes: Any) -> Spoil:
    """Change CRS, transform (perhaps as a function of the old one) or no-data value of a raster."""

    def spoil(world: World) -> None:
        for name in names or (BEST,):
            rewrite(world.raster(file, name), lambda numbers: numbers, changes)

    return spoil


def shifted(east: float, north: float | None = None) -> Callable[[Affine], Affine]:
    """Metres; north as far as east where it is not given."""
    return lambda transform: Affine.translation(east, east if north is None else north) * transform


BANDS = ("B02", "B03", "B04", "B05", "B08", "B11")


def bands(spoil_one: Callable[[str], Spoil]) -> Spoil:
    """Do the same to every band of reflectance."""
    return all_of(*(spoil_one(file) for file in BANDS))


def moved(crs: str, left: float, top: float) -> Spoil:
    """Move all scenes elsewhere on Earth, rasters and footprints."""

    def spoil(world: World) -> None:
        for name in (BEST, OLDER, EDGE):
            for path in world.item(name).parent.glob("*.tif"):
                with rasterio.open(path) as source:
                    transform = Affine(source.transform.a, 0, left, 0, source.transform.e, top)
                rewrite(path, lambda numbers: numbers, {"crs": crs, "transform": transform})
            footprint = to_degrees(box(left, top - 1280, left + 1280, top), crs, 8)
            world.edit(world.item(name), methodcaller("update", geometry=mapping(footprint), bbox=list(bounds_of(footprint))))

    return spoil


def box_in(crs: str, left: float, top: float) -> list[float]:
    """Return [west, south, east, north] in degrees in the middle of scenes moved to (left, top)."""
    corners = [(left + x, top - y) for x in (300, 900) for y in (300, 900)]
    longitudes, latitudes = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*zip(*corners, strict=True))
    unwrapped = np.degrees(np.unwrap(np.radians(longitudes)))
    west, east = ((edge + 180) % 360 - 180 for edge in (unwrapped.min(), unwrapped.max()))
    return [round(float(edge), 6) for edge in (west, min(latitudes), east, max(latitudes))]


@contextmanager
def closing(world: World) -> Iterator[World]:
    try:
        yield world
    finally:
        world.close()


def feature(geometry: Any) -> dict[str, Any]:
    shape = mapping(geometry) if isinstance(geometry, shapely.Geometry) else geometry
    return {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": shape}]}
