"""A small simulated Sentinel-2 catalog, a job for it and the truth beside it: what a newcomer maps first, with no network.

Everything that it writes says that it is simulated. The landscape is a function of place and seed, so scenes of any size come from the same world
and both UTM zones see the same ground.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from shapely.geometry import mapping

from pipeline.demo.acquisitions import ACQUISITIONS, Acquisition
from pipeline.demo.items import COLLECTION, catalog_document, collection_document, item_document, scene_id
from pipeline.demo.observe import observe
from pipeline.demo.rasters import blocks, writers
from pipeline.demo.spectra import BANDS
from pipeline.demo.tiles import JOB_EPSG, Tile, make_tiles, region
from pipeline.demo.truth import write_truth
from pipeline.errors import JobError

SEED = 7
SIZE = 1024
"""Side of a tile in pixels of 10 m: both together cover 16 by 10 km."""
FORMAT = 1
"""Version of what is written; another one is written anew."""

JOB = """# SIMULATED data: a job for the catalog that `spexmap demo` wrote beside it.
name: demo
region: region.geojson
period: {first:%Y-%m-%d}/{last:%Y-%m-%d}
source:
  catalog: catalog.json
  collection: {collection}
grid:
  crs: EPSG:{epsg}
  resolution: 10
model: models/spex-small
classes: [vegetation, building, water, bare]
license: CC0-1.0
output: output
"""


@dataclass(frozen=True)
class DemoPaths:
    """Where the parts of a demo lie."""

    directory: Path
    job: Path
    catalog: Path
    region: Path
    truth: Path
    """Folder of landcover.tif, clear.tif and README.md."""


def write_demo(directory: str | Path, seed: int = SEED, size: int = SIZE) -> DemoPaths:
    """Write the demo into `directory` and return where its parts lie; a complete one of the same seed and size is left as it is.

    Parameters
    ----------
    directory
        Made where it is missing.
    seed
        Chooses the world and its weather: the same seed gives the same pixels.
    size
        Side of a tile in pixels of 10 m, even, 128 to 10980 (a whole Sentinel-2 tile). Memory does not grow with it.

    Raises
    ------
    JobError
        The size is odd or out of range.
    """
    if size % 2 or not 128 <= size <= 10980:
        raise JobError(f"demo size {size}: the side of a tile in pixels of 10 m must be an even number from 128 to 10980")
    root = Path(directory)
    paths = DemoPaths(root, root / "job.yaml", root / "catalog.json", root / "region.geojson", root / "truth")
    recipe = {"simulated": True, "format": FORMAT, "seed": seed, "size": size}
    done = root / "demo.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == recipe:
        return paths
    done.unlink(missing_ok=True)
    (root / COLLECTION).mkdir(parents=True, exist_ok=True)
    with rasterio.Env(GDAL_CACHEMAX=64):
        items = [item for tile in make_tiles(size) for item in _write_tile(root / COLLECTION, tile, seed)]
        write_truth(paths.truth, seed, size)
    _write_json(root / COLLECTION / "collection.json", collection_document(items))
    _write_json(paths.catalog, catalog_document())
    _write_json(paths.region, _region_document(size))
    job = JOB.format(first=ACQUISITIONS[0].time, last=ACQUISITIONS[-1].time, collection=COLLECTION, epsg=JOB_EPSG)
    paths.job.write_text(job, encoding="utf-8")
    _write_json(done, recipe)
    return paths


def _write_tile(folder: Path, tile: Tile, seed: int) -> list[dict[str, Any]]:
    """Write all scenes of a tile and return their items."""
    counts: list[Counter[int]] = [Counter() for _ in ACQUISITIONS]
    specifications = {(a.number, key): spec for a in ACQUISITIONS for key, spec in _scene_rasters(folder, tile, a).items()}
    with writers(specifications) as files:
        for row, column, block in blocks(tile.grid):
            for acquisition, numbers in zip(ACQUISITIONS, observe(tile, block, seed), strict=True):
                for key, plane in numbers.items():
                    factor = block.height // plane.shape[0]
                    files[acquisition.number, key].write(row // factor, column // factor, plane)
                codes, sizes = np.unique(numbers["scl"], return_counts=True)
                counts[acquisition.number].update(dict(zip(codes.tolist(), sizes.tolist(), strict=True)))
    items = [item_document(tile, acquisition, counts[acquisition.number]) for acquisition in ACQUISITIONS]
    for item in items:
        _write_json(folder / item["id"] / f"{item['id']}.json", item)
    return items


def _scene_rasters(folder: Path, tile: Tile, acquisition: Acquisition) -> dict[str, dict[str, Any]]:
    scene = folder / scene_id(tile, acquisition)
    scene.mkdir(exist_ok=True)
    rasters = {b.key: {"path": scene / f"{b.file}.tif", "grid": tile.grid.coarser(b.resolution), "dtype": "uint16"} for b in BANDS}
    return {**rasters, "scl": {"path": scene / "SCL.tif", "grid": tile.grid.coarser(20), "dtype": "uint8", "resampling": "nearest"}}


def _region_document(size: int) -> dict[str, Any]:
    properties = {"name": "demo", "simulated": True}
    feature = {"type": "Feature", "properties": properties, "geometry": mapping(region(size))}
    return {"type": "FeatureCollection", "features": [feature]}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
