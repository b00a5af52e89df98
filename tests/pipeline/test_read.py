"""If these fail, a place has other numbers in another block, or numbers that its scenes do not have."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from shapely.geometry import box as rectangle
from shapely.geometry import shape

from pipeline.grid import Grid, PixelBox
from pipeline.read import Block, BlockReader, Recipe
from pipeline.warp import CELL, lay_out, pixels
from stac.scenes import BandSource, MaskSource, Scene

BANDS = ("blue", "green", "red", "nir")
FILES = dict(zip(BANDS, ("B02", "B03", "B04", "B08"), strict=True))
SCL = MaskSource("", nodata=0, clear=(2, 4, 5, 6, 7, 11), cloud=(3, 8, 9, 10))


def sentinel_2(folder: Path) -> Scene:
    item = json.loads(next(folder.glob("*.json")).read_text())
    return Scene(
        id=item["id"],
        collection="sentinel-2-l2a",
        sensor="sentinel-2",
        datetime=datetime.fromisoformat(item["properties"]["datetime"]),
        footprint=shape(item["geometry"]),
        bands={name: BandSource(str(folder / f"{file}.tif")) for name, file in FILES.items()},
        mask=replace(SCL, href=str(folder / "SCL.tif")),
    )


@pytest.fixture(scope="module")
def styria(shared_data: Path) -> list[Scene]:
    return [sentinel_2(folder) for folder in sorted((shared_data / "scenes/styria-s2/sentinel-2-l2a").glob("S2*"))]


@pytest.fixture(scope="module")
def fort_mcmurray(shared_data: Path) -> list[Scene]:
    return [sentinel_2(shared_data / "scenes/fort-mcmurray-s2/S2_L2A_fort-mcmurray_20190522")]


@pytest.fixture(scope="module")
def potholes(shared_data: Path) -> list[Scene]:
    return [naip(path) for path in sorted((shared_data / "scenes/potholes-naip").glob("*.tif"))]


def naip(path: Path) -> Scene:
    with rasterio.open(path) as dataset:
        outline = rectangle(*rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds))
    bands = {name: BandSource(str(path), index, 1 / 255) for index, name in enumerate(("red", "green", "blue", "nir"), start=1)}
    return Scene(path.stem, "naip", "naip", datetime.fromisoformat("2019-09-04T00:00:00+00:00"), outline, bands, None)


def same(part: Block, whole: Block, cut: tuple[slice, slice]) -> None:
    for plane in ("numbers", "source", "clear", "status"):
        assert getattr(part, plane).tobytes() == np.ascontiguousarray(getattr(whole, plane)[..., *cut]).tobytes(), plane


def compare_boxes(grid: Grid, scenes: list[Scene], recipe: Recipe, outer: PixelBox, boxes: int = 4) -> Block:
    """Read `outer` at once and random boxes of it by readers of their own; return the former."""
    whole = BlockReader(grid, scenes, recipe).read(outer)
    random = np.random.default_rng(5)
    for _ in range(boxes):
        top, left = (int(random.integers(low, high - 40)) for low, high in ((outer.top, outer.bottom), (outer.left, outer.right)))
        height, width = (int(side) for side in random.integers(20, 220, 2))
        part = PixelBox(top, left, top + height, left + width).intersect(outer)
        same(BlockReader(grid, scenes, recipe).read(part), whole, part.within(outer))
    assert whole.numbers.any()
    return whole


@pytest.mark.parametrize(
    ("composite", "crs", "resolution", "origin", "outer"),
    [
        ("median", "EPSG:32633", 120, (499980, 5200020), PixelBox(640, 100, 1100, 560)),
        ("least-cloudy", "EPSG:32634", 120, (0, 5200020), PixelBox(700, 300, 1060, 680)),
        ("median", "EPSG:3035", 250, (4500000, 2700000), PixelBox(350, 850, 640, 1130)),
        ("least-cloudy", "EPSG:4326", 0.002, (14.0, 48.0), PixelBox(450, 300, 800, 640)),
    ],
)
def test_styria_is_the_same_in_any_block(
    styria: list[Scene], composite: str, crs: str, resolution: float, origin: tuple[float, float], outer: PixelBox
) -> None:
    compare_boxes(Grid(crs, resolution, origin, 1024), styria[:4], Recipe(BANDS[1:], composite, (1.5, 1.2)), outer, 3)


def test_fort_mcmurray_is_the_same_in_any_block(fort_mcmurray: list[Scene]) -> None:
    grid = Grid("EPSG:32612", 10, (443580, 6329550), 1024)
    compare_boxes(grid, fort_mcmurray, Recipe(BANDS, "latest", (6, 6)), PixelBox(-50, 300, 400, 720))


def test_aerial_photographs_without_a_mask_are_the_same_in_any_block(potholes: list[Scene]) -> None:
    grid = Grid("EPSG:26914", 5, (485900, 5209247), 1024)
    whole = compare_boxes(grid, potholes[::-1], Recipe(BANDS, "latest"), PixelBox(-20, -20, 300, 400))
    assert set(np.unique(whole.clear)) >= {0, 3}
    assert ((whole.clear > 0) == (whole.status == 0)).all()


def test_pixels_on_the_grid_are_those_of_the_file(styria: list[Scene]) -> None:
    scene = styria[3]
    grid = Grid("EPSG:32633", 120, (499980 - 120 * 30, 5100000 + 120 * 7), 1024)
    block = BlockReader(grid, [scene], Recipe(BANDS, "latest")).read(PixelBox(0, 0, 300, 400))
    for band, numbers in zip(BANDS, block.numbers, strict=True):
        with rasterio.open(scene.bands[band].href) as dataset:
            raw = dataset.read(1)[: 300 - 7, : 400 - 30].astype(int)
        taken = block.source[7:, 30:] == 1
        assert taken.any() and (numbers[7:, 30:][taken] == np.minimum(raw + 1000, 65535)[taken]).all()
    assert not block.source[:7].any() and (block.status[:7] == 252).all() and (block.status[:, :30] == 252).all()


def test_a_pixel_is_the_same_whatever_the_order_of_threads(styria: list[Scene]) -> None:
    grid, outer = Grid("EPSG:32634", 240, (0, 5200020), 1024), PixelBox(350, 150, 530, 340)
    one = BlockReader(grid, styria[:3], Recipe(BANDS, "latest", (1, 1)), threads=1).read(outer)
    shared = BlockReader(grid, styria[:3], Recipe(BANDS, "latest", (1, 1)), threads=5)
    with ThreadPoolExecutor(3) as pool:
        for block in pool.map(shared.read, [outer] * 3):
            for field in fields(Block):
                assert np.array_equal(getattr(block, field.name), getattr(one, field.name))


def test_every_pixel_says_why_it_has_no_data(styria: list[Scene]) -> None:
    block = BlockReader(Grid("EPSG:32633", 120, (499980, 5200020), 1024), styria, Recipe(BANDS, "latest", (0.5, 0.5))).read(
        PixelBox(-9, -9, 400, 300)
    )
    assert set(np.unique(block.status)) == {0, 252, 253}
    filled = block.status == 0
    assert ((block.source > 0) == filled).all() and ((block.numbers != 0).all(axis=0) == filled).all() and (block.clear[filled] > 0).all()
    assert not block.numbers[:, ~filled].any() and not block.clear[~filled & (block.status == 252)].any()


@pytest.mark.parametrize("resolution", [10, 7, 23, 40])
def test_no_data_does_not_bleed_and_edges_stay(tmp_path: Path, resolution: int) -> None:
    blue, nir = np.full((2, 200, 220), 5000, np.uint16)
    blue[60:75, 80:90] = nir[60:75, 80:90] = nir[120, 130] = nir[20:60, 100:103] = 0
    scene = written(tmp_path, blue=blue, nir=nir)
    grid = Grid("EPSG:32634", resolution, (28000, 5018000), 1024)
    block = BlockReader(grid, [scene], Recipe(("blue", "nir"), "latest")).read(PixelBox(0, 0, 3000 // resolution, 3000 // resolution))
    assert set(np.unique(block.numbers)) == {0, 6000}
    assert abs((block.numbers[0] != 0).sum() * resolution**2 / ((blue != 0).sum() * 100) - 1) < 0.02


def test_a_coarse_map_averages_what_lies_under_a_pixel(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scene = written(tmp_path, blue=random.integers(3000, 5000, (240, 240)).astype(np.uint16))
    block = BlockReader(Grid("EPSG:32633", 120, (500000, 5000000), 1024), [scene], Recipe(("blue",), "latest")).read(PixelBox(3, 3, 17, 17))
    assert block.numbers.std() < 100 and abs(block.numbers.mean() - 5000) < 20


def test_a_box_beside_a_file_gets_nothing_of_it(styria: list[Scene]) -> None:
    """Also where box and file touch the same cell of the warp: a scene must not be left out as broken because a block lies just beside it."""
    path = styria[0].bands["red"].href
    grid = Grid("EPSG:32634", 120, (0, 0), 1024)
    layout = lay_out(path, 1, grid, 0, exact=True)
    reach = layout.extent
    assert layout.corner is None and reach.right % CELL and reach.bottom % CELL
    beside, beyond = (PixelBox(reach.top, reach.right + gap, reach.top + 6, reach.right + gap + 5) for gap in (0, 3))
    below = PixelBox(reach.bottom, reach.left, reach.bottom + 4, reach.left + 9)
    for box in (beside, beyond, below):
        assert list(pixels([(path, 1)], layout, grid, box, None, bilinear=True)) == []


def test_overviews_serve_bands_and_never_masks(styria: list[Scene]) -> None:
    band, mask = styria[0].bands["red"].href, styria[0].mask
    assert mask is not None
    for resolution, level in ((60, -1), (120, -1), (230, -1), (240, 0), (480, 1), (2000, 1)):
        grid = Grid("EPSG:32634", resolution, (0, 0), 1024)
        assert lay_out(band, 1, grid, 0, exact=False).level == level
        assert lay_out(mask.href, 1, grid, 0, exact=True).level == -1


def test_a_mask_keeps_its_codes_when_it_is_warped(styria: list[Scene]) -> None:
    recipe, outer = Recipe(BANDS, "latest"), PixelBox(300, 100, 400, 220)
    clear_everywhere = replace(SCL, href=styria[3].mask.href, clear=tuple(range(1, 12)), cloud=())  # type: ignore[union-attr]
    scene = replace(styria[3], mask=clear_everywhere)
    block = BlockReader(Grid("EPSG:32634", 480, (0, 5200020), 1024), [scene], recipe).read(outer)
    assert set(np.unique(block.clear)) <= {0, 1} and ((block.clear == 1) == (block.status == 0)).mean() > 0.99


def written(folder: Path, **bands: np.ndarray) -> Scene:
    """A scene of these bands without a mask, 10 m pixels, north-west corner at 500000, 5000000 in EPSG:32633."""
    transform = rasterio.transform.from_origin(500000, 5000000, 10, 10)
    for name, numbers in bands.items():
        height, width = numbers.shape
        with rasterio.open(folder / f"{name}.tif", "w", "GTiff", width, height, 1, "EPSG:32633", transform, "uint16", 0) as dataset:
            dataset.write(numbers, 1)
            bounds = dataset.bounds
    outline = rectangle(*rasterio.warp.transform_bounds("EPSG:32633", "EPSG:4326", *bounds))
    when = datetime.fromisoformat("2023-08-10T00:00:00+00:00")
    return Scene("made-up", "c", "s", when, outline, {name: BandSource(str(folder / f"{name}.tif")) for name in bands}, None)


@pytest.mark.parametrize("composite", ["latest", "median"])
def test_clear_pixels_beside_clouds_are_used_only_where_nothing_better_is(fort_mcmurray: list[Scene], composite: str) -> None:
    """One scene with a margin of 6 pixels: what its mask calls clear is mapped, and the margin says that it had no clear observation."""
    (scene,) = fort_mcmurray
    grid, box = Grid("EPSG:32612", 10, (0, 0), 1024), PixelBox(-632355, 45230, -632155, 45430)
    plain = BlockReader(grid, [scene], Recipe(BANDS, composite)).read(box)
    grown = BlockReader(grid, [scene], Recipe(BANDS, composite, (6, 6))).read(box)
    np.testing.assert_array_equal(grown.numbers, plain.numbers)
    margin = (grown.clear == 0) & (grown.status == 0)
    assert 0 < margin.sum() < (plain.clear == 1).sum()
    other = replace(scene, id="again", bands={name: replace(band, offset=0.01) for name, band in scene.bands.items()}, mask=None)
    better = BlockReader(grid, [scene, other], Recipe(BANDS, "latest", (6, 6))).read(box)
    assert (better.source[margin] == 2).all()
    assert (better.source[grown.clear == 1] == 1).all()
