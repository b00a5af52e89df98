"""Records of a small made-up series, shared by the publishing tests."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry import box

from stac.geometry import footprint_of
from stac.modelcard import ModelFile, ModelRecord
from stac.records import FILE_ENDINGS, ItemKey, LeftOut, MapClass, ModelReference, PublishedFile, RasterStatistics, SeriesRecord, TileRecord
from stac.scenes import Scene

CLASSES = (
    MapClass(1, "vegetation", "Vegetation", "#1b7f3b", "all plants"),
    MapClass(2, "water", "Water bodies", "#2b6cb0"),
)
MODEL = ModelReference("spex-small", "SPEX small", "ab" * 32)
CREATED = datetime(2023, 9, 1, 6, 0, tzinfo=UTC)
GEOBOX = GeoBox((512, 400), Affine(10, 0, 500000, 0, -10, 5200000), CRS("EPSG:32633"))
SECRET = "sig=hunter2"


def scene(identifier: str, href: str | None, **properties: Any) -> Scene:
    return Scene(
        id=identifier,
        collection="sentinel-2-l2a",
        sensor="sentinel-2",
        datetime=datetime(2023, 8, 13, 10, 8, 2, 123456, UTC),
        footprint=box(14, 46, 16, 48),
        bands={},
        mask=None,
        cloud_cover=1.5,
        processing="05.09",
        calibration="offset already applied: 3.1 % of blue numbers are below 900",
        href=href,
        properties={"platform": "sentinel-2a", "constellation": "sentinel-2", "instruments": ["msi"], **properties},
    )


def key(version: int = 1, tile: str = "epsg32633-10m-e0000-s0001", start: date = date(2023, 8, 10)) -> ItemKey:
    return ItemKey("styria", tile, start, date(2023, 8, 20), version)


def tile_record(version: int = 1, geobox: GeoBox = GEOBOX, **changes: Any) -> TileRecord:
    item_key = changes.pop("key", key(version))
    statistics = RasterStatistics(3.0, 100.0, 71.123456789, 12.5, 88.0)
    files = {
        asset: PublishedFile(item_key.file_name(asset), 1000 + version, "cd" * 32, statistics if asset == "confidence" else None)
        for asset in FILE_ENDINGS
    }
    fields: dict[str, Any] = {
        "key": item_key,
        "geobox": geobox,
        "footprint": footprint_of(geobox),
        "files": files,
        "classes": CLASSES,
        "scenes": (
            scene("S2A_33TWM_20230813", f"https://store.example/items/S2A_33TWM_20230813.json?{SECRET}&se=2023"),
            scene("S2B_33TWM_20230818", "https://store.example/items/S2B_33TWM_20230818.json?collection=s2", platform="sentinel-2b"),
            scene("S2B_33TWL_20230810", None),
        ),
        "left_out": (LeftOut("S2A_33TWL_20230810", "nir: read failed after 3 tries"),),
        "class_areas": {"vegetation": 1812.25, "water": 12.0, "other": 0.5, "no-data": 3.0},
        "model": MODEL,
        "fingerprint": f"{version:064x}",
        "identity": {"runtime": "torch 2.13.0", "threads": 1},
        "created": CREATED,
        "license": "CC-BY-4.0",
        "software": {"spexmap": "0.1.0"},
    }
    return TileRecord(**{**fields, **changes})


def series_record(**changes: Any) -> SeriesRecord:
    fields: dict[str, Any] = {
        "name": "styria",
        "title": "Land cover of Styria",
        "description": "Land cover by SPEX.",
        "license": "CC-BY-4.0",
        "classes": CLASSES,
        "model": MODEL,
        "providers": ({"name": "Agency", "roles": ["producer"], "url": "https://agency.example"},),
        "series": {"composite": "least-cloudy", "grid": {"crs": "EPSG:32633", "resolution": 10.0}},
        "software": {"spexmap": "0.1.0"},
    }
    return SeriesRecord(**{**fields, **changes})


def model_record(**changes: Any) -> ModelRecord:
    fields: dict[str, Any] = {
        "reference": MODEL,
        "architecture": "SPEX",
        "bands": ("blue", "green", "red", "nir"),
        "parameters": 3_000_000,
        "files": (
            ModelFile("model.safetensors", "https://models.example/spex-small/model.safetensors", 12_000_000, "ef" * 32),
            ModelFile("config.json", "https://models.example/spex-small/config.json", 900, "01" * 32),
        ),
        "classes": CLASSES,
        "created": CREATED,
        "framework_version": "2.13.0+cpu",
        "hyperparameters": {"stride": 256},
        "attribution": ("WorldCover 2021, CC BY 4.0, ESA",),
    }
    return ModelRecord(**{**fields, **changes})
