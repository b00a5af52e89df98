"""What can be wrong with the rasters of one item: headers at a glance, pixels and overviews on demand. Every function yields sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from pipeline.overviews import level_shapes, mode_of_four
from pipeline.vrt import BLOCK
from stac.legend import ASSETS, quality_titles, rgba
from stac.records import CONFIDENCE_NO_DATA, NO_DATA, OUTSIDE_REGION, RASTERS, SOURCE_NO_DATA

TRANSFORM_TOLERANCE = 1e-9
"""Of a pixel's side."""


def header_problems(raster: Any, key: str, item: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the open raster of asset `key` differs from its item: type, shape, place, no data, legend."""
    properties, kind = item["properties"], ASSETS[key]
    if raster.dtypes != (kind.data_type,):
        yield f"holds {', '.join(raster.dtypes)}, not one band of {kind.data_type}"
    if list(raster.shape) != properties["proj:shape"]:
        yield f"has shape {list(raster.shape)}, its item says {properties['proj:shape']}"
    if not _same_transform(list(raster.transform)[:6], properties["proj:transform"]):
        yield f"has transform {list(raster.transform)[:6]}, its item says {properties['proj:transform']}"
    if not _same_crs(raster.crs, properties):
        yield f"has CRS {raster.crs}, its item says {properties.get('proj:code')}"
    if raster.nodata != kind.nodata:
        yield f"has no-data value {raster.nodata}, not {kind.nodata}"
    yield from _legend_problems(raster, key, item["assets"][key])
    yield from _overview_sizes(raster)


def _same_transform(found: Sequence[float], said: Sequence[float]) -> bool:
    return bool(np.allclose(found, said[:6], rtol=1e-12, atol=TRANSFORM_TOLERANCE * abs(said[0])))


def _same_crs(crs: Any, properties: Mapping[str, Any]) -> bool:
    said = properties.get("proj:code") or properties.get("proj:wkt2")
    return bool(crs == rasterio.crs.CRS.from_user_input(said)) if said and crs else False


def _legend_problems(raster: Any, key: str, asset: Mapping[str, Any]) -> Iterator[str]:
    if key == "quality" and not quality_titles().items() <= _tagged_classes(raster).items():
        yield "lacks CLASS_ tags of its codes"
    if key != "landcover":
        return
    classes = [entry for entry in asset["classification:classes"] if not entry.get("nodata")]
    if _tagged_classes(raster) != {entry["value"]: entry["title"] for entry in classes}:
        yield f"has CLASS_ tags {raster.tags(1)}, its item has other classes"
    if raster.colorinterp[0] != rasterio.enums.ColorInterp.palette:
        yield "has no colour table"
        return
    table = raster.colormap(1)
    for entry in classes:
        if tuple(table[entry["value"]][:3]) != rgba(f"#{entry['color_hint']}")[:3]:
            yield f"draws class {entry['name']} in {table[entry['value']]}, its item says #{entry['color_hint']}"


def _tagged_classes(raster: Any) -> dict[int, str]:
    tags: Mapping[str, str] = raster.tags(1)
    return {int(name.removeprefix("CLASS_")): title for name, title in tags.items() if name.startswith("CLASS_")}


def _overview_sizes(raster: Any) -> Iterator[str]:
    wanted = len(level_shapes(raster.shape))
    if len(raster.overviews(1)) != wanted:
        yield f"has {len(raster.overviews(1))} overviews, not {wanted}"


def layout_problems(path: str) -> Iterator[str]:
    """Yield why the local raster at `path` is no cloud-optimized GeoTIFF."""
    _, errors, warnings = cog_validate(path, strict=True, quiet=True)
    yield from (f"is no cloud-optimized GeoTIFF: {reason}" for reason in [*errors, *warnings])
    if Path(f"{path}.aux.xml").exists():
        yield "has an .aux.xml beside it, so somebody changed it after it was published"


def overview_problems(path: str) -> Iterator[str]:
    """Yield which overviews of the local raster at `path` are not modes of the next finer level."""
    with rasterio.open(path) as raster:
        count, nodata = len(raster.overviews(1)), int(raster.nodata)
    for level in range(count):
        with (
            rasterio.open(path, **({} if level == 0 else {"OVERVIEW_LEVEL": level - 1})) as finer,
            rasterio.open(path, OVERVIEW_LEVEL=level) as coarser,
        ):
            wrong = sum(int((expected != found).sum()) for expected, found in _levels(finer, coarser, nodata))
        if wrong:
            yield f"has {wrong} pixels in overview {level + 1} that are not the mode of the four they stand for"


def _levels(finer: Any, coarser: Any, nodata: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for top in range(0, coarser.height, BLOCK):
        rows = min(BLOCK, coarser.height - top)
        below = finer.read(1, window=Window(0, 2 * top, finer.width, min(2 * rows, finer.height - 2 * top)))
        yield mode_of_four(below, nodata), coarser.read(1, window=Window(0, top, coarser.width, rows))


def pixel_problems(paths: Mapping[str, str], item: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the four local rasters of an item contradict each other or the item, strip by strip of 512 rows."""
    codes = {entry["value"] for entry in item["assets"]["landcover"]["classification:classes"]}
    scenes = len(item["properties"].get("spexmap:scenes", ()))
    totals: dict[str, int] = {}
    with ExitStack() as stack:
        rasters = {key: stack.enter_context(rasterio.open(paths[key])) for key in RASTERS}
        for top in range(0, rasters["landcover"].height, BLOCK):
            window = Window(0, top, rasters["landcover"].width, min(BLOCK, rasters["landcover"].height - top))
            strip = {key: raster.read(1, window=window) for key, raster in rasters.items()}
            for problem, pixels in _contradictions(strip, codes, scenes):
                totals[problem] = totals.get(problem, 0) + pixels
    yield from (f"{pixels} pixels {problem}" for problem, pixels in totals.items() if pixels)


def _contradictions(strip: Mapping[str, NDArray[Any]], codes: set[int], scenes: int) -> Iterator[tuple[str, int]]:
    """Yield each contradiction with the number of pixels that show it, zeros included."""
    empty = strip["landcover"] == NO_DATA
    present = np.unique(strip["landcover"])
    confidence = strip["confidence"]
    yield "have a land cover although quality says no data, or the other way round", int((empty != (strip["quality"] >= OUTSIDE_REGION)).sum())
    yield "have a confidence without a land cover, or the other way round", int((empty != (confidence == CONFIDENCE_NO_DATA)).sum())
    yield "have a confidence above 100 %", int(((confidence > 100) & (confidence != CONFIDENCE_NO_DATA)).sum())
    yield "name a source scene without a land cover", int((empty & (strip["source"] != SOURCE_NO_DATA)).sum())
    yield f"name a source scene beyond the {scenes} of the item", int((strip["source"] > scenes).sum())
    yield "have a code that the item does not list", sum(int((strip["landcover"] == code).sum()) for code in present if int(code) not in codes)
