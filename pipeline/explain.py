"""What a published map says of one place: class, confidence, which scene and date, quality, and the text about the class in that tile."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from posixpath import dirname, join, normpath
from typing import Any

import rasterio
from affine import AffineError
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import JobError
from pipeline.grid import Grid, PixelBox
from pipeline.storage import Storage
from spexmap import SpexmapError
from stac.legend import quality_titles
from stac.publish import CATALOG_PATH
from stac.records import ALWAYS_CLOUD, NEVER_OBSERVED, NO_DATA, OTHER, OUTSIDE_REGION, RASTERS, READ_FAILED, SOURCE_NO_DATA

_REMEDIES: Mapping[int, str] = {
    OUTSIDE_REGION: "ask for a place inside the region, or map a larger one",
    NEVER_OBSERVED: "map a longer period, or a catalog with scenes of this place",
    ALWAYS_CLOUD: "map a longer period, or raise source.max_cloud_cover",
    READ_FAILED: "run the job again when the scenes can be read",
}


class NoSuchPlace(JobError):
    """A place that no tile of the map covers, or that is no place on earth."""


class NoDataAtPlace(JobError):
    """A place where the map is empty; the message says why and what to do."""


@dataclass(frozen=True)
class SourceScene:
    """The scene that a pixel's reflectance comes from."""

    id: str
    datetime: str
    cloud_cover: float | None
    """Percent of the scene, where it says so."""


@dataclass(frozen=True)
class PlaceExplanation:
    """What one map says of one place."""

    longitude: float
    latitude: float
    series: str
    period: str
    """First and last day, joined by a slash."""
    tile: str
    item: str
    """Path of the STAC item below the output."""
    version: int
    code: int
    """Land-cover code."""
    title: str
    confidence: int
    """Percent; for other, one minus the highest probability."""
    clear_observations: int
    """0: mapped from a pixel beside cloud or shadow."""
    scene: SourceScene | None
    """None for a median of several scenes."""
    composite: str
    text: str
    """About the class in this tile; for other, about the tile; empty where the map was made without explanations."""


def parse_place(text: str) -> tuple[float, float]:
    """Return longitude and latitude in degrees of ``LON,LAT``; raises `NoSuchPlace` for anything else."""
    try:
        longitude, latitude = (float(part) for part in text.split(","))
    except ValueError:
        raise NoSuchPlace(f"{text!r} is no place; write longitude and latitude in degrees, for example --at 15.44,47.07") from None
    if not (math.isfinite(longitude) and math.isfinite(latitude) and -180 <= longitude <= 180 and -90 <= latitude <= 90):
        raise NoSuchPlace(f"{text!r} is not on Earth; longitude comes first (-180 to 180), then latitude (-90 to 90)")
    return longitude, latitude


def explain_place(output: Storage | str, longitude: float, latitude: float) -> tuple[PlaceExplanation, ...]:
    """Return what the maps of an output say of a place: of each series its newest period that covers it, by name.

    Reads a few small documents and one pixel of each raster, whatever the size of the output.

    Parameters
    ----------
    output
        Local path or any fsspec URL.
    longitude, latitude
        In degrees, WGS 84.

    Raises
    ------
    JobError
        The output holds no catalog, a document of it is damaged or leads out of it, or a raster cannot be read.
    NoSuchPlace
        No tile covers the place.
    NoDataAtPlace
        Every map that covers it is empty there.
    """
    storage = output if isinstance(output, Storage) else Storage(output)
    found: list[PlaceExplanation] = []
    empty: list[NoDataAtPlace] = []
    extents = []
    for path in _collections(storage):
        with _reading(storage, path) as collection:
            extents.append(f"{collection['id']} covers {', '.join(f'{value:.4f}' for value in collection['extent']['spatial']['bbox'][0])}")
            try:
                found.extend(_explain(storage, path, collection, longitude, latitude))
            except NoDataAtPlace as error:
                empty.append(error)
    if not found:
        raise (
            empty[0]
            if empty
            else NoSuchPlace(f"no tile covers {longitude:g},{latitude:g} (longitude, latitude); {'; '.join(extents)} (west, south, east, north)")
        )
    return tuple(found)


def _collections(storage: Storage) -> list[str]:
    if not storage.exists(CATALOG_PATH):
        raise JobError(f"{storage.root} holds no catalog.json; is it the `output` of a job that has published a tile?")
    with _reading(storage, CATALOG_PATH) as catalog:
        paths = [_inside(storage, CATALOG_PATH, link["href"]) for link in catalog["links"] if link["rel"] == "child"]
    if not paths:
        raise JobError(f"{storage.root} holds no map yet; run the job first")
    return sorted(paths)


@contextmanager
def _reading(storage: Storage, path: str, item: str | None = None) -> Iterator[Any]:
    """Yield the JSON document at `path`; raises JobError that names it where it is not there, or what is looked for in it is not.

    With `item`, a run makes the document again where that item is gone; without, where the document itself is.
    """
    again = f"run the job again; spexmap validate {storage.shown} lists what else is wrong"
    try:
        document = json.loads(storage.read_bytes(path))
        json.dumps(document, ensure_ascii=False).encode()  # half a character can be read, and not be printed
        yield document
    except SpexmapError:
        raise
    except FileNotFoundError as error:
        raise JobError(f"{storage.url(path)} is not there; {f'delete {storage.url(item)} and ' if item else ''}{again}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, AffineError) as error:
        spoilt = f"delete {storage.url(item) if item else 'it'} and {again}"
        raise JobError(f"{storage.url(path)} is damaged ({type(error).__name__}: {error}); {spoilt}") from error


def _inside(storage: Storage, path: str, href: str) -> str:
    """Return the path below the output that `href` in the document at `path` means; raises JobError where it leads out of it."""
    target = normpath(join(dirname(path), href))
    if "://" in href or target.startswith(("/", "..")):
        raise JobError(f"{storage.url(path)} names {href}, which leads out of the output and is not read; delete it and run the job again")
    return target


def _explain(storage: Storage, path: str, collection: Mapping[str, Any], longitude: float, latitude: float) -> Iterator[PlaceExplanation]:
    """Yield what one series says of the place; nothing where it does not cover it."""
    recorded = collection["spexmap:series"]["grid"]
    grid = Grid(recorded["crs"], recorded["resolution"], (recorded["origin"][0], recorded["origin"][1]), recorded["tile"])
    pixel = _pixel(grid, longitude, latitude)
    if pixel is None:
        return
    tile = grid.tile_id(next(pixel.lattice(grid.tile)))
    hrefs = (_inside(storage, path, link["href"]) for link in collection["links"] if link["rel"] == "item")
    items = sorted((href for href in hrefs if href.split("/")[2:3] == [tile]), reverse=True)
    for item_path in items[:1]:
        with _reading(storage, item_path) as item:
            if not pixel.intersect(box := _box(grid, item)).is_empty:
                rows, columns = pixel.within(box)
                yield _of_pixel(storage, item_path, item, (longitude, latitude), Window.from_slices(rows, columns))


def _box(grid: Grid, item: Mapping[str, Any]) -> PixelBox:
    """Return the global pixels of an item's rasters."""
    transform, (height, width) = item["properties"]["proj:transform"], item["properties"]["proj:shape"]
    left, top = (round(value) for value in ~grid.transform @ (transform[2], transform[5]))
    return PixelBox(top, left, top + height, left + width)


def _pixel(grid: Grid, longitude: float, latitude: float) -> PixelBox | None:
    """Return the global pixel of a place; None where the CRS has no such place."""
    x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(longitude, latitude)
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    column, row = (math.floor(value) for value in ~grid.transform @ (x, y))
    return PixelBox(row, column, row + 1, column + 1)


def _of_pixel(storage: Storage, path: str, item: Mapping[str, Any], place: tuple[float, float], window: Window) -> PlaceExplanation:
    properties = item["properties"]
    numbers = {key: _read(storage, _inside(storage, path, item["assets"][key]["href"]), window) for key in RASTERS}
    series, period, tile, version = path.split("/")[:4]
    start, end = period.split("_")
    if numbers["landcover"] == NO_DATA:
        why = quality_titles().get(numbers["quality"], "unknown reason")
        remedy = _REMEDIES.get(numbers["quality"], "run spexmap validate OUTPUT --deep")
        raise NoDataAtPlace(f"{series} has no data at {place[0]:g},{place[1]:g} in {start}/{end}: {why[0].lower() + why[1:]}; {remedy}")
    titles = {entry["value"]: entry["title"] for entry in item["assets"]["landcover"]["classification:classes"]}
    return PlaceExplanation(
        longitude=place[0],
        latitude=place[1],
        series=series,
        period=f"{start}/{end}",
        tile=tile,
        item=path,
        version=int(version.removeprefix("v")),
        code=numbers["landcover"],
        title=titles[numbers["landcover"]],
        confidence=numbers["confidence"],
        clear_observations=numbers["quality"],
        scene=_scene(properties["spexmap:scenes"], numbers["source"]),
        composite=properties["spexmap:composite"],
        text=_text(storage, path, item, numbers["landcover"]),
    )


def _read(storage: Storage, path: str, window: Window) -> int:
    try:
        with storage.local_copy(path) as copy, rasterio.open(copy) as raster:
            return int(raster.read(1, window=window)[0, 0])
    except (RasterioError, OSError, ValueError, IndexError) as error:
        raise JobError(f"{storage.url(path)} cannot be read: {error}; spexmap validate {storage.root} says what else is wrong") from error


def _scene(scenes: list[Mapping[str, Any]], rank: int) -> SourceScene | None:
    if rank == SOURCE_NO_DATA:
        return None
    row = next((each for each in scenes if each["rank"] == rank), None)
    if row is None:
        raise ValueError(f"it names no scene {rank}, which its raster does")
    cloud = row.get("cloud_cover")
    return SourceScene(row["id"], row["datetime"], None if cloud is None else float(cloud))


def _text(storage: Storage, path: str, item: Mapping[str, Any], code: int) -> str:
    asset = item["assets"].get("explanation")
    if asset is None:
        return ""
    with _reading(storage, _inside(storage, path, asset["href"]), path) as document:
        return str(document["scene"] if code == OTHER else {row["code"]: row for row in document["classes"]}[code]["text"])


def in_words(place: PlaceExplanation) -> str:
    """Return what a map says of a place, as lines for a person."""
    scene = place.scene
    cloud = f", {scene.cloud_cover:.0f} % cloud" if scene is not None and scene.cloud_cover is not None else ""
    source = f"{scene.id} of {scene.datetime}{cloud}" if scene is not None else f"{place.composite} of the clear observations"
    many = "observation" if place.clear_observations == 1 else "observations"
    clear = f"{place.clear_observations} clear {many}" if place.clear_observations else "beside cloud or shadow, no clearer observation"
    confidence = f"confidence {place.confidence} %" + (" (one minus the highest probability of a class)" if place.code == OTHER else "")
    lines = [
        f"{place.longitude:g},{place.latitude:g}: {place.title}, {confidence}",
        f"scene    {source}",
        f"quality  {clear}",
        f"map      {place.series}, {place.period}, version {place.version}",
        f"item     {place.item}",
        f"tile     {place.text or 'no text: the map was made with explain: false'}",
    ]
    return "\n".join(lines)
