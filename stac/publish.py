"""Items, collection and catalog of a published map, as STAC 1.1.0 documents.

Pure functions from records (`stac.records`) to dictionaries; `stac.canonical.canonical_json` turns a dictionary into the bytes that are published.
Every link and asset inside the output is relative, so an output can be moved or served from anywhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from posixpath import relpath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pystac import MediaType, RelType

from stac.geometry import bounds_of, geojson_of, union_of
from stac.legend import ASSETS, asset_classes, renders
from stac.records import ItemEntry, ItemKey, LeftOut, MapClass, PublishedFile, RasterStatistics, SeriesRecord, TileRecord
from stac.scenes import Scene
from stac.secrets import is_signed

STAC_VERSION = "1.1.0"
EXTENSIONS: Mapping[str, str] = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in (
        ("classification", "2.0.0"),
        ("file", "2.1.0"),
        ("processing", "1.2.0"),
        ("projection", "2.0.0"),
        ("raster", "1.1.0"),
        ("render", "2.0.0"),
        ("version", "1.2.0"),
    )
}
"""Schema of every extension that the documents use."""

CATALOG_PATH = "catalog.json"
MODEL_RELATION = "model"
"""Link relation from items and collection to the model's own item, which is no map and must not be walked as one."""
METRES_PER_DEGREE = 111319.49079327358
SHA256_MULTIHASH = "1220"
"""Multihash prefix: sha2-256, 32 bytes."""


def collection_path(series: str) -> str:
    """Return where the collection of `series` lies below the output."""
    return f"{series}/collection.json"


def model_path(series: str, model_id: str) -> str:
    """Return where the document of the model lies below the output."""
    return f"{series}/model/{model_id}.json"


def item(tile: TileRecord) -> dict[str, Any]:
    """Return the STAC item of one version of one tile."""
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": sorted(EXTENSIONS.values()),
        "id": tile.key.id,
        "collection": tile.key.series,
        "geometry": geojson_of(tile.footprint),
        "bbox": list(bounds_of(tile.footprint)),
        "properties": _item_properties(tile),
        "links": _item_links(tile),
        "assets": {key: _asset(key, file, tile.classes) for key, file in tile.files.items()},
    }


def _item_properties(tile: TileRecord) -> dict[str, Any]:
    created = rfc3339(tile.created)
    return {
        "title": f"{tile.key.series}, tile {tile.key.tile}, {tile.key.start} to {tile.key.end}",
        "datetime": None,
        "start_datetime": rfc3339(first_instant(tile.key.start)),
        "end_datetime": rfc3339(last_instant(tile.key.end)),
        "created": created,
        "license": tile.license,
        "version": str(tile.key.version),
        "deprecated": False,
        "gsd": ground_sample_distance(tile.geobox),
        "processing:datetime": created,
        "processing:level": "L4",
        "processing:lineage": _lineage(tile),
        "processing:software": dict(tile.software),
        "renders": renders(tile.classes),
        **_instruments(tile.scenes),
        **_projection(tile),
        **_provenance(tile),
    }


def _lineage(tile: TileRecord) -> str:
    how = {"median": "the median of the clear observations"}.get(tile.composite, "the first clear observation of every pixel")
    return (
        f"Surface reflectance of {len(tile.scenes)} scenes, {how} in {tile.composite} order, was segmented into "
        f"{len(tile.classes)} classes by {tile.model.name}; asset source says which scene every pixel comes from."
    )


def _instruments(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Say platform and constellation where all scenes agree, as these fields hold one name, and every instrument."""
    known: dict[str, Any] = {}
    for name in ("platform", "constellation"):
        values = {scene.properties.get(name) for scene in scenes}
        if len(values) == 1 and (value := values.pop()):
            known[name] = value
    instruments = sorted({name for scene in scenes for name in scene.properties.get("instruments") or ()})
    return {**known, "instruments": instruments} if instruments else known


def _projection(tile: TileRecord) -> dict[str, Any]:
    geobox: Any = tile.geobox
    bounds = geobox.boundingbox
    code = _authority_code(geobox.crs)
    described = {"proj:code": code} if code else {"proj:code": None, "proj:wkt2": geobox.crs.proj.to_wkt("WKT2_2019")}
    return {
        **described,
        "proj:shape": list(geobox.shape),
        "proj:transform": list(geobox.affine)[:6],
        "proj:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
    }


def _authority_code(crs: Any) -> str | None:
    return f"EPSG:{crs.epsg}" if crs.epsg is not None else None


def _provenance(tile: TileRecord) -> dict[str, Any]:
    return {
        "spexmap:series": tile.key.series,
        "spexmap:tile": tile.key.tile,
        "spexmap:fingerprint": tile.fingerprint,
        "spexmap:identity": dict(tile.identity),
        "spexmap:model": {"id": tile.model.id, "name": tile.model.name, "fingerprint": tile.model.fingerprint},
        "spexmap:composite": tile.composite,
        "spexmap:scenes": [_scene_row(rank, scene) for rank, scene in enumerate(tile.scenes, start=1)],
        "spexmap:scenes_left_out": [_left_out_row(scene) for scene in sorted(set(tile.left_out), key=lambda scene: (scene.id, scene.reason))],
        "spexmap:class_areas_ha": {name: round(area, 4) for name, area in tile.class_areas.items()},
        **({"spexmap:attribution": sorted(set(tile.attribution))} if tile.attribution else {}),
    }


def _scene_row(rank: int, scene: Scene) -> dict[str, Any]:
    return {
        "rank": rank,
        "id": scene.id,
        "collection": scene.collection,
        "datetime": rfc3339(scene.datetime),
        "cloud_cover": scene.cloud_cover,
        "processing": scene.processing,
        "calibration": scene.calibration,
        "href": None if scene.href is None else unsigned(scene.href),
    }


def _left_out_row(scene: LeftOut) -> dict[str, str]:
    return {"id": scene.id, "reason": scene.reason}


def _item_links(tile: TileRecord) -> list[dict[str, Any]]:
    here = tile.key.folder
    collection_href = relpath(collection_path(tile.key.series), here)
    links = [
        link(RelType.ROOT, relpath(CATALOG_PATH, here), MediaType.JSON),
        link(RelType.PARENT, collection_href, MediaType.JSON),
        link(RelType.COLLECTION, collection_href, MediaType.JSON),
        link(MODEL_RELATION, relpath(model_path(tile.key.series, tile.model.id), here), MediaType.GEOJSON, tile.model.name),
    ]
    sources = (link(RelType.DERIVED_FROM, unsigned(scene.href), MediaType.GEOJSON, scene.id) for scene in tile.scenes if scene.href)
    return [*links, *sources, *_predecessor_links(tile.key)]


def _predecessor_links(key: ItemKey) -> list[dict[str, Any]]:
    if key.version == 1:
        return []
    return [_version_link("predecessor-version", ItemKey(key.series, key.tile, key.start, key.end, key.version - 1))]


def _version_link(relation: str, key: ItemKey) -> dict[str, Any]:
    return link(relation, f"../v{key.version}/{key.id}.json", MediaType.GEOJSON, f"version {key.version}")


def _asset(key: str, file: PublishedFile, classes: Sequence[MapClass]) -> dict[str, Any]:
    described = {**ASSETS[key].to_dict(), "href": f"./{file.name}", "file:size": file.size, "file:checksum": SHA256_MULTIHASH + file.sha256}
    if ASSETS[key].data_type is None:
        return described
    return {**described, **asset_classes(key, classes), "raster:bands": [_raster_band(key, file.statistics)], "bands": [_core_band(key)]}


def _core_band(key: str) -> dict[str, Any]:
    return {"name": key, "description": ASSETS[key].description}


def _raster_band(key: str, statistics: RasterStatistics | None) -> dict[str, Any]:
    band = {"data_type": ASSETS[key].data_type, "nodata": ASSETS[key].nodata, "sampling": "area"}
    if ASSETS[key].unit:
        band["unit"] = ASSETS[key].unit
    return band if statistics is None else {**band, "statistics": _statistics(statistics)}


def _statistics(statistics: RasterStatistics) -> dict[str, float]:
    numbers = {
        "minimum": statistics.minimum,
        "maximum": statistics.maximum,
        "mean": statistics.mean,
        "stddev": statistics.stddev,
        "valid_percent": statistics.valid_percent,
    }
    return {name: round(number, 6) for name, number in numbers.items() if number is not None}


def supersede(item: Mapping[str, Any], successor: Mapping[str, Any], latest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return `item` as it reads once `successor`, the next version of the same tile and period, is published.

    `latest` is the newest version where that is not `successor`. Doing it twice changes nothing.
    """
    latest = successor if latest is None else latest
    retired = copy.deepcopy(dict(item))
    retired["properties"] = {**retired["properties"], "deprecated": True, "updated": latest["properties"]["created"]}
    kept = [entry for entry in retired["links"] if entry["rel"] not in ("successor-version", "latest-version")]
    retired["links"] = [*kept, _link_to_version("successor-version", successor), _link_to_version("latest-version", latest)]
    return retired


def _link_to_version(relation: str, document: Mapping[str, Any]) -> dict[str, Any]:
    version = document["properties"]["version"]
    return link(relation, f"../v{version}/{document['id']}.json", MediaType.GEOJSON, f"version {version}")


def collection(series: SeriesRecord, entries: Iterable[ItemEntry]) -> dict[str, Any]:
    """Return the collection of a series over its items.

    Extent and summaries are those of the items that hold (not deprecated), and only these are linked: who walks the catalog gets one map, and finds
    older versions through each item's ``predecessor-version``. Raises ValueError where no item holds, as an extent needs one.
    """
    current = sorted((entry for entry in entries if not entry.deprecated), key=lambda entry: entry.path)
    if not current:
        raise ValueError(f"series {series.name} has no item to publish a collection of; publish a tile first")
    names = ("classification", "processing", "projection", "raster", "render")
    document = {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": sorted(EXTENSIONS[name] for name in names),
        "id": series.name,
        "title": series.title,
        "description": series.description,
        "license": series.license,
        "keywords": sorted(series.keywords),
        "extent": _extent(current),
        "summaries": _summaries(series, current),
        "item_assets": {key: {**asset.to_dict(), **asset_classes(key, series.classes)} for key, asset in ASSETS.items()},
        "renders": renders(series.classes),
        "spexmap:series": dict(series.series),
        "links": _collection_links(series, current),
    }
    return {**document, "providers": [dict(provider) for provider in series.providers]} if series.providers else document


def _extent(entries: Sequence[ItemEntry]) -> dict[str, Any]:
    spatial = list(union_of([entry.bbox for entry in entries]))
    temporal = [min(entry.start for entry in entries), max(entry.end for entry in entries)]
    return {"spatial": {"bbox": [spatial]}, "temporal": {"interval": [temporal]}}


def _summaries(series: SeriesRecord, entries: Sequence[ItemEntry]) -> dict[str, Any]:
    codes = sorted({entry.crs for entry in entries if entry.crs})
    return {
        "processing:level": ["L4"],
        "processing:software": [dict(series.software)],
        **({"proj:code": codes} if codes else {}),
        "classification:classes": asset_classes("landcover", series.classes)["classification:classes"],
    }


def _collection_links(series: SeriesRecord, entries: Sequence[ItemEntry]) -> list[dict[str, Any]]:
    here = series.name
    to_root = relpath(CATALOG_PATH, here)
    return [
        link(RelType.ROOT, to_root, MediaType.JSON),
        link(RelType.PARENT, to_root, MediaType.JSON),
        link(MODEL_RELATION, relative_href(model_path(series.name, series.model.id), here), MediaType.GEOJSON, series.model.name),
        *(link(RelType.ITEM, relative_href(entry.path, here), MediaType.GEOJSON) for entry in entries),
    ]


def catalog(identifier: str, title: str, description: str, series: Mapping[str, str]) -> dict[str, Any]:
    """Return the root catalog over the collections of `series`: name to title."""
    children = [link(RelType.CHILD, f"./{collection_path(name)}", MediaType.JSON, series[name]) for name in sorted(series)]
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": identifier,
        "title": title,
        "description": description,
        "links": [link(RelType.ROOT, f"./{CATALOG_PATH}", MediaType.JSON), *children],
    }


def link(relation: str, href: str, media_type: str, title: str | None = None) -> dict[str, Any]:
    """Return a STAC link."""
    entry = {"rel": str(relation), "href": href, "type": str(media_type)}
    return {**entry, "title": title} if title else entry


def relative_href(path: str, folder: str) -> str:
    """Return the href of `path` as seen from `folder`, both below the output; ``./`` leads what lies inside the folder."""
    href = relpath(path, folder)
    return href if href.startswith("..") else f"./{href}"


def unsigned(href: str) -> str:
    """Return the href without a signature: a query that carries one is dropped whole, and so are user name, password and fragment."""
    parts = urlsplit(href)
    if not parts.netloc:
        return href
    query = "" if is_signed(parts) else parts.query
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def rfc3339(instant: datetime) -> str:
    """Return an aware instant as UTC text, for example ``2023-08-10T09:50:31Z``; milliseconds only where there are some."""
    text = instant.astimezone(UTC).isoformat(timespec="milliseconds" if instant.microsecond else "seconds")
    return text.replace("+00:00", "Z")


def first_instant(day: date) -> datetime:
    """Return the first instant of a day, UTC."""
    return datetime.combine(day, time(0, 0, 0), UTC)


def last_instant(day: date) -> datetime:
    """Return the last whole second of a day, UTC."""
    return datetime.combine(day, time(23, 59, 59), UTC)


def ground_sample_distance(geobox: Any) -> float:
    """Return the pixel side in metres; of a grid in degrees, that of a degree of latitude."""
    side = math.sqrt(abs(geobox.affine.determinant))
    if geobox.crs.geographic:
        return round(side * METRES_PER_DEGREE, 3)
    return round(side * float(geobox.crs.proj.axis_info[0].unit_conversion_factor), 6)
