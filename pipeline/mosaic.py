"""The blocks of a tile become its rasters: four cloud-optimized GeoTIFFs and a preview, from complete data, in one copy each.

Blocks arrive in any order and are gathered by windows in an uncompressed scratch file, so memory is bounded by the block. The COG driver then
reads a VRT that carries everything the file says (numbers, overviews, colour table, tags), and nothing touches the file afterwards: same pixels,
same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

from pipeline.grid import Grid, PixelBox
from pipeline.overviews import open_plain, write_levels
from pipeline.vrt import BLOCK, band_element, root_element, source_element
from spexmap import SpexmapError
from stac.legend import ASSETS, class_colors, class_titles, quality_titles
from stac.records import RASTERS, MapClass, PublishedFile, RasterStatistics

Planes = Mapping[str, NDArray[Any]]
"""Asset key (`stac.records.RASTERS`) to an array (h, w) of the dtype that the asset has."""

PREVIEW_SIDE = 1024
"""Longer side of the preview in pixels, at most."""
COG_OPTIONS: Mapping[str, str] = {
    "COMPRESS": "DEFLATE",
    "LEVEL": "6",
    "BLOCKSIZE": str(BLOCK),
    "OVERVIEWS": "FORCE_USE_EXISTING",
    "BIGTIFF": "IF_SAFER",
    "STATISTICS": "NO",
}
"""DEFLATE is what every reader has, browsers included; at level 6 it is as small and as quick as Zstandard's 9, and higher levels cost ten times."""


class IncompleteTile(SpexmapError, ValueError):
    """The blocks given for a tile overlap, leave pixels out, or hold planes of a wrong kind."""


@dataclass(frozen=True)
class TileRasters:
    """The files of a tile, still on local disk, and the counts behind their statistics."""

    files: Mapping[str, Path]
    """By asset key: the four rasters and thumbnail."""
    published: Mapping[str, PublishedFile]
    """The same, as items name them."""
    counts: Mapping[str, NDArray[np.int64]]
    """Pixels by number for every raster: 256 of uint8, 65536 of uint16."""

    def class_pixels(self) -> dict[int, int]:
        """Return the number of pixels of every land-cover code that occurs."""
        counts = self.counts["landcover"]
        return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}


def make_rasters(
    blocks: Iterable[tuple[PixelBox, Planes]],
    box: PixelBox,
    grid: Grid,
    classes: Sequence[MapClass],
    folder: Path,
    stem: str,
    *,
    threads: int = 1,
) -> TileRasters:
    """Write ``<stem>_landcover.tif``, ``_confidence.tif``, ``_source.tif``, ``_quality.tif`` and ``_preview.png`` into `folder`.

    Parameters
    ----------
    blocks
        Global pixel box and planes of every block, in any order. Planes hold the published numbers: landcover uint8 class codes, 0 no data,
        254 other; confidence uint8 0..100, 255 no data; source uint16 rank, 0 none; quality uint8 0..250 counts, 251..254 codes. What lies outside
        `box` is left out.
    box
        The tile's pixels. Blocks must cover each of them exactly once.
    stem
        Beginning of the file names: the item's id.
    threads
        Threads of the COG driver's compression; the bytes do not depend on it.

    Raises
    ------
    IncompleteTile
        Where blocks overlap, leave pixels out, or have a plane of another shape or dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {key: f"{stem}_{key}.tif" for key in RASTERS}
    with TemporaryDirectory(dir=folder, prefix=".mosaic-") as scratch_name:
        scratch = Path(scratch_name)
        counts = _gather(blocks, box, grid, scratch)
        levels = {key: write_levels(scratch / f"{key}.tif", _nodata(key)) for key in RASTERS}
        for key in RASTERS:
            vrt = _write_vrt(key, box, grid, classes, scratch, levels[key])
            rasterio.shutil.copy(vrt, folder / names[key], driver="COG", NUM_THREADS=str(threads), PREDICTOR=_predictor(key), **COG_OPTIONS)
        preview = folder / f"{stem}_preview.png"
        write_preview([scratch / "landcover.tif", *levels["landcover"]], classes, preview)
    files = {**{key: folder / name for key, name in names.items()}, "thumbnail": preview}
    return TileRasters(files, {key: _published(path, key, counts.get(key)) for key, path in files.items()}, counts)


def _nodata(key: str) -> int:
    nodata = ASSETS[key].nodata
    assert nodata is not None
    return nodata


def _predictor(key: str) -> str:
    """Confidence is the one smooth raster: differences of neighbours are smaller than its numbers. Differences of codes are not."""
    return "YES" if key == "confidence" else "NO"


def _gather(blocks: Iterable[tuple[PixelBox, Planes]], box: PixelBox, grid: Grid, scratch: Path) -> dict[str, NDArray[np.int64]]:
    """Write the blocks into one scratch file a raster and return the pixels by number of each."""
    geobox = grid.geobox(box)
    georeference = {"crs": _crs(grid), "transform": geobox.affine}
    counts = {key: np.zeros(np.iinfo(_dtype(key)).max + 1, np.int64) for key in RASTERS}
    with ExitStack() as stack:
        targets = {
            key: stack.enter_context(open_plain(scratch / f"{key}.tif", box.shape, _dtype(key), _nodata(key), **georeference)) for key in RASTERS
        }
        for part, planes in _parts(blocks, box):
            rows, columns = part.within(box)
            window = Window(columns.start, rows.start, *reversed(part.shape))
            for key, target in targets.items():
                target.write(planes[key], 1, window=window)
                counts[key] += count_numbers(planes[key], counts[key].size)
    return counts


def count_numbers(plane: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Return how often each number 0..size-1 occurs in `plane` (H, W), by strips, as NumPy counts in eight bytes a pixel."""
    counts = np.zeros(size, np.int64)
    for top in range(0, plane.shape[0], BLOCK):
        counts += np.bincount(plane[top : top + BLOCK].ravel(), minlength=size)
    return counts


def _dtype(key: str) -> str:
    return str(ASSETS[key].data_type)


def _crs(grid: Grid) -> Any:
    return rasterio.crs.CRS.from_user_input(grid.crs)


def _parts(blocks: Iterable[tuple[PixelBox, Planes]], box: PixelBox) -> Iterator[tuple[PixelBox, dict[str, NDArray[Any]]]]:
    """Yield every block cut to `box`, and check at the end that they covered it exactly once."""
    seen: list[PixelBox] = []
    for block, planes in blocks:
        part = block.intersect(box)
        if part.is_empty:
            continue
        _check_overlap(part, seen)
        seen.append(part)
        cut = part.within(block)
        yield part, {key: np.ascontiguousarray(_checked(key, planes, block)[cut]) for key in RASTERS}
    covered, wanted = sum(_pixels(part) for part in seen), _pixels(box)
    if covered != wanted:
        raise IncompleteTile(f"{wanted - covered} of {wanted} pixels of the tile at {box} have no block; segment the missing blocks first")


def _pixels(box: PixelBox) -> int:
    return box.shape[0] * box.shape[1]


def _check_overlap(part: PixelBox, seen: Sequence[PixelBox]) -> None:
    for other in seen:
        if not part.intersect(other).is_empty:
            raise IncompleteTile(f"blocks {part} and {other} overlap; give every pixel of a tile once")


def _checked(key: str, planes: Planes, block: PixelBox) -> NDArray[Any]:
    plane = planes.get(key)
    if plane is None or plane.shape != block.shape or plane.dtype != np.dtype(_dtype(key)):
        found = "nothing" if plane is None else f"{plane.dtype} {plane.shape}"
        raise IncompleteTile(f"plane {key} of block {block} is {found}; it must be {_dtype(key)} {block.shape}")
    return plane


def _write_vrt(key: str, box: PixelBox, grid: Grid, classes: Sequence[MapClass], scratch: Path, levels: Sequence[Path]) -> Path:
    """Describe the finished raster in a VRT: what the COG driver copies, so that nothing is edited into the file later."""
    height, width = box.shape
    root = root_element(grid, box)
    band = band_element(root, _dtype(key), key, _nodata(key), _titles(key, classes), class_colors(classes) if key == "landcover" else None)
    source_element(band, f"{key}.tif", (0, 0, width, height), _dtype(key))
    for level in levels:
        overview = ElementTree.SubElement(band, "Overview")
        ElementTree.SubElement(overview, "SourceFilename", relativeToVRT="1").text = level.name
        ElementTree.SubElement(overview, "SourceBand").text = "1"
    path = scratch / f"{key}.vrt"
    path.write_bytes(ElementTree.tostring(root, encoding="utf-8"))
    return path


def _titles(key: str, classes: Sequence[MapClass]) -> dict[int, str]:
    if key == "landcover":
        return class_titles(classes)
    return quality_titles() if key == "quality" else {}


def write_preview(levels: Sequence[Path], classes: Sequence[MapClass], path: Path) -> None:
    """Write the finest of `levels` (land cover, finest first) that fits into 1,024 pixels as a PNG in the legend's colours, no data transparent.

    A map smaller than half of that is enlarged by a whole factor, every pixel a square.
    """
    codes = _fitting_level(levels)
    factor = max(1, PREVIEW_SIDE // max(codes.shape))
    image = Image.fromarray(np.repeat(np.repeat(codes, factor, axis=0), factor, axis=1))
    colors = class_colors(classes)
    palette = np.zeros((256, 3), np.uint8)
    for code, color in colors.items():
        palette[code] = color[:3]
    image.putpalette(palette.tobytes())
    image.save(path, format="PNG", transparency=bytes(colors.get(code, (0, 0, 0, 0))[3] for code in range(256)), compress_level=6)


def _fitting_level(levels: Sequence[Path]) -> NDArray[np.uint8]:
    for level in levels:
        with rasterio.open(level) as source:
            if max(source.shape) <= PREVIEW_SIDE:
                return np.asarray(source.read(1), np.uint8)
    raise AssertionError("the coarsest level fits into one tile")


def _published(path: Path, key: str, counts: NDArray[np.int64] | None) -> PublishedFile:
    return PublishedFile(path.name, path.stat().st_size, sha256_of(path), None if counts is None else _statistics(key, counts))


def _statistics(key: str, counts: NDArray[np.int64]) -> RasterStatistics:
    """The statistics that mean something: of codes and ranks only the share of valid pixels, of quality only the counts."""
    statistics = statistics_of(counts, _nodata(key), highest=250 if key == "quality" else None)
    if key in ("landcover", "source"):
        return RasterStatistics(None, None, None, None, statistics.valid_percent)
    return statistics


def statistics_of(counts: NDArray[np.int64], nodata: int, highest: int | None = None) -> RasterStatistics:
    """Return the statistics of a raster from its pixels by number, `nodata` and numbers above `highest` left out; exact, as the sums are integers."""
    total = int(counts.sum())
    valid = {int(number): int(counts[number]) for number in np.flatnonzero(counts) if number != nodata and (highest is None or number <= highest)}
    pixels = sum(valid.values())
    share = 100.0 * pixels / total if total else 0.0
    if not pixels:
        return RasterStatistics(None, None, None, None, share)
    once = sum(number * count for number, count in valid.items())
    twice = sum(number * number * count for number, count in valid.items())
    variance = (twice * pixels - once * once) / pixels**2
    return RasterStatistics(float(min(valid)), float(max(valid)), once / pixels, variance**0.5, share)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex digits, read in parts of 8 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 23):
            digest.update(part)
    return digest.hexdigest()
