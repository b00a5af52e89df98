"""The static STAC catalog around the simulated scenes, in the manner of Earth Search v1."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shapely.geometry import mapping

from pipeline.demo.acquisitions import ACQUISITIONS, Acquisition
from pipeline.demo.observe import is_cut
from pipeline.demo.spectra import BANDS, Band
from pipeline.demo.tiles import PixelGrid, Tile, footprint

COLLECTION = "sentinel-2-l2a"
SIMULATED = "SIMULATED, not an image of any real place."
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("eo/v1.1.0", "grid/v1.0.0", "projection/v1.1.0", "raster/v1.1.0", "view/v1.0.0")
]
SCL_PROPERTIES = {
    1: "saturated_defective_pixel",
    2: "dark_features",
    3: "cloud_shadow",
    4: "vegetation",
    5: "not_vegetated",
    6: "water",
    7: "unclassified",
    8: "medium_proba_clouds",
    9: "high_proba_clouds",
    10: "thin_cirrus",
    11: "snow_ice",
}


def scene_id(tile: Tile, acquisition: Acquisition) -> str:
    """Return the item's id: Earth Search's pattern with a suffix that no real scene has."""
    return f"S2{acquisition.platform[-1].upper()}_{tile.name}_{acquisition.time:%Y%m%d}_0_L2A_SIMULATED"


def item_document(tile: Tile, acquisition: Acquisition, scl_counts: Mapping[int, int]) -> dict[str, Any]:
    """Return the STAC item of one scene; `scl_counts` says how many pixels of each scene class it has."""
    name = scene_id(tile, acquisition)
    polygon = footprint(tile, is_cut(tile, acquisition))
    assets = {band.key: _band_asset(band, tile.grid, acquisition) for band in BANDS}
    assets["scl"] = _scl_asset(tile.grid)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": name,
        "collection": COLLECTION,
        "geometry": mapping(polygon),
        "bbox": list(polygon.bounds),
        "properties": {**_properties(name, tile, acquisition), **_percentages(scl_counts)},
        "assets": assets,
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
        ],
    }


def _properties(name: str, tile: Tile, acquisition: Acquisition) -> dict[str, Any]:
    zone, band, square = tile.name[:2], tile.name[2], tile.name[3:]
    stamp = f"{acquisition.time:%Y%m%dT%H%M%S}"
    version = acquisition.baseline.replace(".", "")
    properties = {
        "title": f"Simulated Sentinel-2 scene of {tile.name}, {acquisition.time:%Y-%m-%d}",
        "description": f"{SIMULATED} Made by spexmap demo.",
        "spexmap:simulated": True,
        "datetime": timestamp(acquisition.time),
        "created": timestamp(acquisition.generated),
        "updated": timestamp(acquisition.generated),
        "platform": acquisition.platform,
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": 10,
        "proj:epsg": tile.grid.epsg,
        "mgrs:utm_zone": int(zone),
        "mgrs:latitude_band": band,
        "mgrs:grid_square": square,
        "grid:code": f"MGRS-{tile.name}",
        "view:sun_azimuth": acquisition.sun_azimuth,
        "view:sun_elevation": acquisition.sun_elevation,
        "s2:processing_baseline": acquisition.baseline,
        "s2:generation_time": timestamp(acquisition.generated),
        "s2:datatake_id": f"GS2{acquisition.platform[-1].upper()}_{stamp}_000000_N{acquisition.baseline}",
        "s2:product_uri": f"SIMULATED_{name[:3]}_MSIL2A_{stamp}_N{version}_R022_T{tile.name}.SAFE",
        "s2:sequence": "0",
    }
    if acquisition.baseline >= "04.00":
        properties["earthsearch:boa_offset_applied"] = acquisition.offset_removed
    return properties


def timestamp(time: datetime) -> str:
    """Return a UTC time as STAC writes it."""
    return f"{time:%Y-%m-%dT%H:%M:%S}Z"


def _percentages(counts: Mapping[int, int]) -> dict[str, float]:
    every = sum(counts.values())
    valid = max(1, every - counts.get(0, 0))
    shares = {f"s2:{name}_percentage": round(100 * counts.get(code, 0) / valid, 6) for code, name in SCL_PROPERTIES.items()}
    cloud = sum(counts.get(code, 0) for code in (8, 9, 10))
    nodata = {"s2:nodata_pixel_percentage": round(100 * counts.get(0, 0) / max(1, every), 6)}
    return {"eo:cloud_cover": round(100 * cloud / valid, 6), **nodata, **shares}


def _projection(grid: PixelGrid) -> dict[str, Any]:
    return {"proj:shape": [grid.height, grid.width], "proj:transform": [grid.resolution, 0, grid.left, 0, -grid.resolution, grid.top]}


def _band_asset(band: Band, grid: PixelGrid, acquisition: Acquisition) -> dict[str, Any]:
    # From baseline 04.00 on Earth Search publishes the offset whether or not it is still in the numbers; so does this catalog, on purpose.
    offset = -0.1 if acquisition.baseline >= "04.00" else 0
    encoding = {"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "spatial_resolution": band.resolution, "scale": 0.0001, "offset": offset}
    return {
        "href": f"./{band.file}.tif",
        "type": COG,
        "title": band.title,
        "eo:bands": [_eo_band(band)],
        "gsd": band.resolution,
        **_projection(grid.coarser(band.resolution)),
        "raster:bands": [encoding],
        "roles": ["data", "reflectance"],
    }


def _eo_band(band: Band) -> dict[str, Any]:
    label = band.title.split(" - ")[0]
    return {
        "name": band.key,
        "common_name": band.common_name,
        "description": label,
        "center_wavelength": band.wavelength,
        "full_width_half_max": band.width,
    }


def _scl_asset(grid: PixelGrid) -> dict[str, Any]:
    return {
        "href": "./SCL.tif",
        "type": COG,
        "title": "Scene classification map (SCL)",
        **_projection(grid.coarser(20)),
        "raster:bands": [{"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}],
        "roles": ["data", "reflectance"],
    }


def collection_document(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the collection of the items."""
    boxes = [item["bbox"] for item in items]
    extent = [min(box[0] for box in boxes), min(box[1] for box in boxes), max(box[2] for box in boxes), max(box[3] for box in boxes)]
    times = [timestamp(ACQUISITIONS[0].time), timestamp(ACQUISITIONS[-1].time)]
    links = [
        {"rel": "root", "href": "../catalog.json", "type": "application/json"},
        {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
    ]
    links += [{"rel": "item", "href": f"./{item['id']}/{item['id']}.json", "type": "application/geo+json"} for item in items]
    return {
        "type": "Collection",
        "id": COLLECTION,
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "title": "Simulated Sentinel-2 Level-2A scenes",
        "description": f"{SIMULATED} An invented landscape in the format of Sentinel-2 Level-2A as Earth Search has it, by spexmap demo.",
        "license": "CC0-1.0",
        "extent": {"spatial": {"bbox": [extent]}, "temporal": {"interval": [times]}},
        "summaries": {"spexmap:simulated": [True], "platform": ["sentinel-2a", "sentinel-2b"], "constellation": ["sentinel-2"]},
        "links": links,
    }


def catalog_document() -> dict[str, Any]:
    """Return the root of the catalog."""
    return {
        "type": "Catalog",
        "id": "spexmap-demo",
        "stac_version": "1.1.0",
        "title": "spexmap demo: simulated Sentinel-2 scenes",
        "description": f"{SIMULATED} Two overlapping tiles in two UTM zones, three dates, with the true land cover beside them in truth/.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            {"rel": "child", "href": f"./{COLLECTION}/collection.json", "type": "application/json"},
        ],
    }
