"""If these fail, published rasters have holes, wrong overviews, lost legends, or bytes that change between runs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rio_cogeo import cog_validate

from pipeline.grid import Grid, PixelBox
from pipeline.mosaic import IncompleteTile, TileRasters, make_rasters, statistics_of
from pipeline.overviews import level_shapes, mode_of_four
from pipeline.vrt import VrtTile, landcover_vrt
from stac.records import RASTERS, MapClass

CLASSES = (
    MapClass(1, "vegetation", "Vegetation", "#1b7f3b"),
    MapClass(2, "water", "Water & ice – Wörthersee", "#2b6cb0"),
    MapClass(7, "bare", "Bare ground", "#c2a878"),
)
GRID = Grid("EPSG:32633", 10.0, (499980.0, 5200020.0), 10240)
BOX = PixelBox(-701, 333, 640, 1402)
NODATA = {"landcover": 0, "confidence": 255, "source": 0, "quality": 251}
DTYPES = {"landcover": np.uint8, "confidence": np.uint8, "source": np.uint16, "quality": np.uint8}


def planes_of(box: PixelBox) -> dict[str, np.ndarray]:
    """A scene that depends on the global pixel only, with all special codes in it."""
    y, x = np.mgrid[box.top : box.bottom, box.left : box.right]
    noise = (y * 2654435761 + x * 40503) % 1009
    landcover = np.select([np.hypot(y, x - 800) < 300, (x + y) % 97 < 40, noise < 50], [2, 1, 254], 7).astype(np.uint8)
    quality = (noise % 7).astype(np.uint8)
    for code, there in ((252, noise % 11 == 0), (253, x < 380), (254, y > 620), (251, y + x < -150)):
        quality[there] = code
    empty = quality >= 251
    landcover[empty] = 0
    confidence = np.where(empty, 255, noise % 101).astype(np.uint8)
    source = np.where(empty, 0, 1 + noise).astype(np.uint16)
    return {"landcover": landcover, "confidence": confidence, "source": source, "quality": quality}


def blocks_of(box: PixelBox, side: int, seed: int = 0) -> list[tuple[PixelBox, dict[str, np.ndarray]]]:
    cells = list(box.lattice(side))
    random.Random(seed).shuffle(cells)
    return [(cell, planes_of(cell)) for cell in cells]


def digests(rasters: TileRasters) -> dict[str, str]:
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in rasters.files.items()}


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> TileRasters:
    return make_rasters(blocks_of(BOX, 512), BOX, GRID, CLASSES, tmp_path_factory.mktemp("tile"), "styria_v1")


def levels_of(path: Path) -> Iterator[np.ndarray]:
    with rasterio.open(path) as base:
        yield base.read(1)
        count = len(base.overviews(1))
    for level in range(count):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as overview:
            yield overview.read(1)


def wrong_modes(finer: np.ndarray, coarser: np.ndarray, nodata: int) -> int:
    """Number of overview pixels that are no mode of their valid children, by plain counting."""
    height, width = coarser.shape
    assert (height, width) == (-(-finer.shape[0] // 2), -(-finer.shape[1] // 2))
    padded = np.full((2 * height, 2 * width), nodata, finer.dtype)
    padded[: finer.shape[0], : finer.shape[1]] = finer
    children = padded.reshape(height, 2, width, 2).transpose(1, 3, 0, 2).reshape(4, height, width)
    valid = children != nodata
    votes = np.stack([((children == child) & valid).sum(axis=0) for child in children])
    given_votes = ((children == coarser) & valid).sum(axis=0)
    right = np.where(valid.any(axis=0), given_votes == votes.max(axis=0), coarser == nodata)
    return int((~right | (valid.any(axis=0) & (coarser == nodata))).sum())


@pytest.mark.parametrize("key", RASTERS)
def test_rasters_hold_what_the_blocks_held(tile: TileRasters, key: str) -> None:
    with rasterio.open(tile.files[key]) as raster:
        assert raster.dtypes == (np.dtype(DTYPES[key]).name,)
        assert raster.nodata == NODATA[key]
        assert raster.crs.to_epsg() == 32633
        assert raster.transform == GRID.geobox(BOX).affine
        assert np.array_equal(raster.read(1), planes_of(BOX)[key])


@pytest.mark.parametrize("key", RASTERS)
def test_every_overview_pixel_is_a_mode_of_its_children(tile: TileRasters, key: str) -> None:
    levels = list(levels_of(tile.files[key]))
    assert len(levels) == 3
    for finer, coarser in pairwise(levels):
        assert wrong_modes(finer, coarser, NODATA[key]) == 0


@pytest.mark.parametrize("key", RASTERS)
def test_rasters_are_cloud_optimized_and_carry_no_time(tile: TileRasters, key: str) -> None:
    assert cog_validate(tile.files[key], strict=True) == (True, [], [])
    with rasterio.open(tile.files[key]) as raster:
        assert raster.block_shapes == [(512, 512)]
        assert raster.compression.value == "DEFLATE"
        assert set(raster.tags()) == {"AREA_OR_POINT"}


def test_legend_is_in_the_file(tile: TileRasters) -> None:
    with rasterio.open(tile.files["landcover"]) as raster:
        colors = raster.colormap(1)
        assert raster.tags(1) == {"CLASS_1": "Vegetation", "CLASS_2": "Water & ice – Wörthersee", "CLASS_7": "Bare ground", "CLASS_254": "Other"}
        assert raster.descriptions == ("landcover",)
    assert colors[2] == (0x2B, 0x6C, 0xB0, 255)
    assert colors[0][3] == 0
    with rasterio.open(tile.files["quality"]) as raster:
        assert raster.tags(1)["CLASS_253"] == "Always cloud or shadow"


def test_only_the_files_are_left(tile: TileRasters) -> None:
    folder = tile.files["landcover"].parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tile.files.values())
    assert {key: file.size for key, file in tile.published.items()} == {key: path.stat().st_size for key, path in tile.files.items()}
    assert {key: file.sha256 for key, file in tile.published.items()} == digests(tile)


def test_bytes_do_not_depend_on_blocks_order_or_threads(tile: TileRasters, tmp_path: Path) -> None:
    again = make_rasters(blocks_of(BOX, 768, seed=5), BOX, GRID, CLASSES, tmp_path, "styria_v1", threads=3)
    assert digests(again) == digests(tile)
    assert again.published == tile.published


def test_counts_are_those_of_the_pixels(tile: TileRasters) -> None:
    landcover = planes_of(BOX)["landcover"]
    assert tile.class_pixels() == {int(code): int((landcover == code).sum()) for code in np.unique(landcover)}


def test_statistics_leave_codes_and_no_data_out(tile: TileRasters) -> None:
    statistics = tile.published["quality"].statistics
    quality = planes_of(BOX)["quality"]
    counted = quality[quality <= 250].astype(float)
    assert statistics is not None
    assert (statistics.minimum, statistics.maximum) == (counted.min(), counted.max())
    assert statistics.mean == pytest.approx(counted.mean())
    assert statistics.stddev == pytest.approx(counted.std())
    assert statistics.valid_percent == pytest.approx(100 * counted.size / quality.size)


def test_codes_have_no_mean(tile: TileRasters) -> None:
    for key in ("landcover", "source"):
        statistics = tile.published[key].statistics
        assert statistics is not None and statistics.mean is None and 0 < statistics.valid_percent < 100


def test_statistics_of_an_empty_tile_say_so() -> None:
    counts = np.zeros(256, np.int64)
    counts[255] = 9
    assert statistics_of(counts, 255).mean is None
    assert statistics_of(counts, 255).valid_percent == 0


def test_missing_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteTile, match="have no block"):
        make_rasters(blocks_of(BOX, 512)[1:], BOX, GRID, CLASSES, tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_overlapping_blocks_are_refused(tmp_path: Path) -> None:
    blocks = blocks_of(BOX, 512)
    with pytest.raises(IncompleteTile, match="overlap"):
        make_rasters([*blocks, blocks[0]], BOX, GRID, CLASSES, tmp_path, "x")


def test_plane_of_another_kind_is_refused(tmp_path: Path) -> None:
    box = PixelBox(0, 0, 8, 8)
    planes = planes_of(box) | {"source": np.zeros((8, 8), np.int32)}
    with pytest.raises(IncompleteTile, match="source"):
        make_rasters([(box, planes)], box, GRID, CLASSES, tmp_path, "x")


@pytest.mark.parametrize("box", [PixelBox(0, 0, 1, 1), PixelBox(5, -3, 6, 700), PixelBox(-1030, 2, -1, 5)])
def test_tiles_of_odd_sizes_are_whole(tmp_path: Path, box: PixelBox) -> None:
    rasters = make_rasters(blocks_of(box, 256), box, GRID, CLASSES, tmp_path, "x")
    for key in RASTERS:
        levels = list(levels_of(rasters.files[key]))
        assert np.array_equal(levels[0], planes_of(box)[key])
        assert len(levels) == 1 + len(level_shapes(box.shape))
        assert all(wrong_modes(finer, coarser, NODATA[key]) == 0 for finer, coarser in pairwise(levels))
        assert cog_validate(rasters.files[key], strict=True)[0]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035", "+proj=laea +lat_0=47 +lon_0=15 +datum=WGS84"])
def test_georeference_survives_in_any_crs(tmp_path: Path, crs: str) -> None:
    grid = Grid(crs, 0.0001 if crs == "EPSG:4326" else 20.0, (14.0, 48.0) if crs == "EPSG:4326" else (4_000_000.0, 2_700_000.0), 1024)
    box = PixelBox(-20, 30, 40, 90)
    rasters = make_rasters([(box, planes_of(box))], box, grid, CLASSES, tmp_path, "x")
    with rasterio.open(rasters.files["landcover"]) as raster:
        assert raster.transform.almost_equals(grid.geobox(box).affine, 1e-12)
        assert raster.crs == rasterio.crs.CRS.from_user_input(crs)


def test_preview_shows_the_map_in_its_colors(tile: TileRasters) -> None:
    image = Image.open(tile.files["thumbnail"])
    levels = list(levels_of(tile.files["landcover"]))
    assert image.size == (levels[1].shape[1], levels[1].shape[0])
    pixels = np.asarray(image.convert("RGBA"))
    assert np.array_equal(pixels[..., 3] == 0, levels[1] == 0)
    assert {tuple(color) for color in pixels[levels[1] == 2]} == {(0x2B, 0x6C, 0xB0, 255)}


def test_preview_of_a_tiny_map_is_enlarged(tmp_path: Path) -> None:
    box = PixelBox(0, 0, 60, 90)
    image = Image.open(make_rasters(blocks_of(box, 256), box, GRID, CLASSES, tmp_path, "x").files["thumbnail"])
    assert image.size == (990, 660)


codes = st.sampled_from(["uint8", "uint16"]).flatmap(
    lambda dtype: st.tuples(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 3, 250, 251, 252, 254, 255])),
        st.sampled_from([0, 251, 255]),
    )
)


@given(codes)
@settings(max_examples=300, deadline=None)
def test_mode_of_four_is_a_mode_and_the_lowest(case: tuple[np.ndarray, int]) -> None:
    numbers, nodata = case
    coarser = mode_of_four(numbers, nodata)
    assert coarser.dtype == numbers.dtype
    assert wrong_modes(numbers, coarser, nodata) == 0
    for row, column in np.ndindex(coarser.shape):
        children = numbers[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()
        valid = children[children != nodata]
        values, votes = np.unique(valid, return_counts=True)
        assert coarser[row, column] == (values[votes.argmax()] if valid.size else nodata)


def test_vrt_equals_its_tiles_and_carries_the_legend(tmp_path: Path) -> None:
    boxes = {"a": PixelBox(0, 0, 600, 512), "b": PixelBox(0, 512, 600, 700), "c": PixelBox(600, 512, 650, 700)}
    paths = {}
    for name, box in boxes.items():
        rasters = make_rasters(blocks_of(box, 512), box, GRID, CLASSES, tmp_path / "s" / "period" / name / "v1", f"s_{name}")
        paths[name] = str(rasters.files["landcover"].relative_to(tmp_path))
    tiles = [VrtTile(paths[name], box) for name, box in boxes.items()]
    text = landcover_vrt(tiles, GRID, CLASSES, "s/period")
    assert text == landcover_vrt(tiles[::-1], GRID, CLASSES, "s/period")
    assert str(tmp_path).encode() not in text
    vrt = tmp_path / "s" / "period" / "landcover.vrt"
    vrt.write_bytes(text)
    whole = PixelBox(0, 0, 650, 700)
    expected = planes_of(whole)["landcover"]
    expected[600:, :512] = 0
    with rasterio.open(vrt) as layer:
        assert np.array_equal(layer.read(1), expected)
        assert layer.transform == GRID.geobox(whole).affine
        assert layer.nodata == 0
        assert layer.tags(1)["CLASS_2"] == "Water & ice – Wörthersee"
        assert layer.colormap(1)[7] == (0xC2, 0xA8, 0x78, 255)


def test_vrt_moves_with_its_output(tmp_path: Path) -> None:
    box = PixelBox(0, 0, 40, 40)
    folder = tmp_path / "here" / "s" / "p" / "t" / "v1"
    rasters = make_rasters(blocks_of(box, 512), box, GRID, CLASSES, folder, "s")
    text = landcover_vrt([VrtTile(str(rasters.files["landcover"].relative_to(tmp_path / "here")), box)], GRID, CLASSES, "s/p")
    (tmp_path / "here" / "s" / "p" / "landcover.vrt").write_bytes(text)
    (tmp_path / "here").rename(tmp_path / "there")
    with rasterio.open(tmp_path / "there" / "s" / "p" / "landcover.vrt") as layer:
        assert np.array_equal(layer.read(1), planes_of(box)["landcover"])


def test_vrt_needs_a_tile() -> None:
    with pytest.raises(ValueError, match="one tile"):
        landcover_vrt([], GRID, CLASSES, "s/p")
