"""Random job files, items and masks: each works or is refused in a sentence. If one fails, somebody's odd file ends a run with a traceback.

`SPEXMAP_FUZZ_SECONDS` is the time for all three together (default 6), `SPEXMAP_FUZZ_SEED` where to begin.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from fuzzing import ANYTHING, Spoiled, fuzz, spoiled
from hypothesis import strategies as st
from shapely.geometry import box as rectangle
from tenacity import wait_none

from pipeline.assets import AssetReader
from pipeline.demo.acquisitions import ACQUISITIONS
from pipeline.demo.items import item_document
from pipeline.demo.tiles import make_tiles
from pipeline.grid import Grid, PixelBox
from pipeline.job import load_job
from pipeline.planning import resolve_grid
from pipeline.read import ALWAYS_CLOUDY, NEVER_OBSERVED, READ_FAILURE, BlockReader, Recipe
from pipeline.region import load_region
from pipeline.snap import check_holds_pixels, metres_per_pixel
from spexmap import SpexmapError
from stac.acquisitions import Candidate, by_acquisition
from stac.errors import SceneRefused
from stac.footprints import footprint
from stac.items import acquired, item_id, read_item
from stac.scenes import BandSource, MaskSource, Scene
from stac.sensors import profile_of

WHOLE_JOB: dict[str, Any] = {
    "name": "styria",
    "region": [15.0, 46.9, 15.5, 47.2],
    "period": "2023-08-10/2023-08-20",
    "source": {"catalog": "catalog.json", "collection": "c", "max_cloud_cover": 80.0, "exclude": ["a"], "headers": {"Authorization": "Bearer ${T}"}},
    "mask": {"dilate": 60.0},
    "grid": {"crs": "EPSG:32633", "resolution": 10.0, "origin": [0.0, 0.0], "tile": 1024},
    "composite": "least-cloudy",
    "model": "models/spex-small",
    "runtime": "auto",
    "classes": ["water", {"name": "field", "code": 7, "title": "Field", "instruction": "segment fields", "color": "#112233"}],
    "explain": True,
    "license": "CC-BY-4.0",
    "providers": [{"name": "a", "roles": ["producer"], "url": "memory://a", "description": "b"}],
    "fail_on_empty": False,
    "output": "memory://bucket/prefix",
}


# ---------------------------------------------------------------------------------------------------------------- job files


@st.composite
def torn_text(draw: st.DrawFn) -> str:
    """A sound job's text with pieces put in or cut out."""
    text = yaml.safe_dump(WHOLE_JOB, sort_keys=False)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        piece = draw(
            st.one_of(
                st.text(max_size=5), st.sampled_from(["\t", "&a ", "*a", "!!binary ", "!x ", "<<: *a\n", "? ", "---\n", "#", "'", "|\n", "{", "["])
            )
        )
        text = text[:at] + piece + text[at + draw(st.integers(0, 12)) :]
    return text


def dumped(spoilt: Spoiled) -> str:
    try:
        return yaml.safe_dump(spoilt.document, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return repr(spoilt.document)


JOB_TEXTS = st.one_of(spoiled(st.just(WHOLE_JOB)).map(dumped), torn_text(), st.text(max_size=200))
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(["grid.tile", "classes", "region", "a.b", "", "source.headers.x"]), st.text(max_size=10)).map("=".join), max_size=2
)


def test_job_files_are_understood_or_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"

    def check(example: tuple[str, list[str]]) -> None:
        text, overrides = example
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            job = load_job(path, overrides)
            region = load_region(job.region)
            with job.naming_lines():
                grid = resolve_grid(job, region, (), ())
                check_holds_pixels(grid, region)
            assert all(size > 0 for size in metres_per_pixel(grid, region))
        except SpexmapError as error:
            assert str(error).strip() and len(str(error)) < 30_000
            str(error).encode()

    fuzz("job files", st.tuples(JOB_TEXTS, OVERRIDES), check)


# ---------------------------------------------------------------------------------------------------------------- items


@pytest.fixture(scope="module")
def items(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Simulated items, and beside them real ones of all sensors where the shared data are."""
    counts = Counter({4: 90, 9: 10})
    simulated = [item_document(tile, acquisition, counts) for tile in make_tiles(128) for acquisition in ACQUISITIONS]
    try:
        folder = request.getfixturevalue("shared_data") / "stac-items"
    except pytest.skip.Exception:
        return simulated
    return simulated + list(_real(folder))


def _real(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.json")):
        if path.stat().st_size < 100_000:
            document = json.loads(path.read_text())
            if isinstance(document, dict) and document.get("type") == "Feature":
                yield document


def sample_of(number: int) -> Any:
    """A probe that shows dark, bright, empty, odd or no pixels."""
    shown = (None, np.full((9, 90), 500, np.uint16), np.full((9, 90), 1500, np.uint16), np.zeros((9, 90), np.uint16), np.full((0, 0), np.nan))
    return lambda band, wanted: shown[number]


def test_items_become_scenes_or_are_refused_in_a_sentence(items: list[dict[str, Any]]) -> None:
    def check(example: tuple[Spoiled, int]) -> None:
        document, shown = example[0].document, example[1]
        try:
            item_id(document)
            acquired(document)
            ground = footprint(document.get("geometry"))
            item = read_item(document, "/catalog/items.json")
            profile = profile_of(item)
            candidates = [Candidate(item, profile, profile.acquisition(item), ground)] * 2
            assert len(by_acquisition(candidates)) == 1
            scene = profile.to_scene(item, sample_of(shown))
        except SceneRefused as error:
            assert str(error).strip()
            return
        assert ground.is_valid and ground.area > 0
        assert scene.bands
        frozen = json.dumps(scene.to_dict(), allow_nan=False)
        assert json.dumps(Scene.from_dict(json.loads(frozen)).to_dict()) == frozen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz("items", st.tuples(spoiled(st.sampled_from(items)), st.integers(0, 4)), check)


# ---------------------------------------------------------------------------------------------------------------- masks and bands

GRID, BOX = Grid("EPSG:32633", 10, (500_000, 5_000_000), 1024), PixelBox(-20, -30, 60, 50)
BOUNDS = (14.99, 45.14, 15.02, 45.16)
MASKS = st.one_of(
    st.just(MaskSource("", nodata=0, clear=(2, 4, 5, 6, 7, 11), cloud=(3, 8, 9, 10))),
    st.just(MaskSource("", nodata=1, cloud_bits=(1, 2, 3, 4), fill_bits=(0,))),
    st.just(MaskSource("", nodata=255, cloud_bits=(1, 2, 3))),
    st.builds(MaskSource, st.just(""), st.integers(0, 3), st.one_of(st.none(), st.integers(-5, 300)), st.just((4,)), st.just((9,))),
)
KINDS = st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float32", "float64", "complex64"])


@dataclass(frozen=True)
class Raster:
    """A small raster of random content, size, kind and place."""

    shape: tuple[int, int]
    kind: str
    codes: tuple[float, ...]
    """Of which its pixels are chosen."""
    seed: int
    nodata: float | None
    crs: str | None
    transform: Affine
    cut: float
    """Part of the file's bytes that is left."""

    def write(self, path: Path) -> None:
        kind = np.dtype(self.kind)
        with np.errstate(all="ignore"):
            numbers = np.random.default_rng(self.seed).choice(np.array(self.codes), self.shape).astype(kind)
        profile = {"driver": "GTiff", "count": 1, "height": self.shape[0], "width": self.shape[1], "dtype": kind, "crs": self.crs}
        nodata = self.nodata if self.nodata is not None and kind.kind in "fc" else _within(self.nodata, kind)
        with rasterio.open(path, "w", **profile, transform=self.transform, nodata=nodata, compress="deflate") as target:
            target.write(numbers, 1)
        if self.cut < 1:
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * self.cut)])


def _within(value: float | None, kind: np.dtype[Any]) -> float | None:
    if value is None or kind.kind not in "iu":
        return None
    limits = np.iinfo(kind)
    return value if limits.min <= value <= limits.max else None


TRANSFORMS = st.one_of(
    st.just(GRID.transform),
    st.builds(
        lambda x, y, side: Affine(side, 0, 500_000 + x, 0, -side, 5_000_000 - y),
        st.integers(-300, 300),
        st.integers(-300, 300),
        st.sampled_from([10, 20, 60, 7.3]),
    ),
    st.builds(lambda angle, side: GRID.transform * Affine.rotation(angle) * Affine.scale(side), st.integers(0, 359), st.sampled_from([0.5, 1, 3])),
    st.builds(Affine, *[st.sampled_from([0.0, 1.0, -10.0, 1e-9, 1e9])] * 6),
)
RASTERS = st.builds(
    Raster,
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    kind=KINDS,
    codes=st.lists(
        st.one_of(st.integers(0, 12), st.sampled_from([255, 2720, 21824, 65535, -1, -9999, 0.3, np.nan, np.inf, 1e300])), min_size=1, max_size=6
    ).map(tuple),
    seed=st.integers(0, 99),
    nodata=st.one_of(st.none(), st.sampled_from([0, 1, 4, 255, -9999, 65535])),
    crs=st.sampled_from(["EPSG:32633"] * 6 + ["EPSG:32632", "EPSG:4326", "EPSG:3413", "EPSG:32733", None]),
    transform=TRANSFORMS,
    cut=st.sampled_from([1.0] * 8 + [0.0, 0.3, 0.9]),
)
EXAMPLES = st.tuples(RASTERS, RASTERS, MASKS, st.sampled_from(["latest", "median"]), st.sampled_from([(0.0, 0.0), (2.0, 3.5)]), st.integers(0, 2))


def test_masks_and_bands_are_read_or_left_out_in_a_sentence(tmp_path: Path) -> None:
    numbers = itertools.count()

    def check(example: tuple[Raster, Raster, MaskSource, str, tuple[float, float], int]) -> None:
        band, mask, source, composite, dilate, index = example
        paths = [tmp_path / f"{next(numbers)}.tif" for _ in range(2)]
        band.write(paths[0])
        mask.write(paths[1])
        given = MaskSource(str(paths[1]), source.index, source.nodata, source.clear, source.cloud, source.cloud_bits, source.fill_bits)
        when = datetime(2023, 8, 10, tzinfo=UTC)
        scene = Scene("a", "c", "s", when, rectangle(*BOUNDS), {"red": BandSource(str(paths[0]), index or 1)}, given)
        block = BlockReader(GRID, [scene], Recipe(("red",), composite, dilate), assets=AssetReader(GRID, wait_none())).read(BOX)
        for path in paths:
            path.unlink(missing_ok=True)
        assert block.numbers.shape == (1, *BOX.shape) and block.status.shape == BOX.shape
        assert ((block.numbers[0] == 0) == np.isin(block.status, (NEVER_OBSERVED, ALWAYS_CLOUDY, READ_FAILURE))).all()
        assert all(reason.strip() for _, reason in block.failures)
        if block.failures:
            assert not block.numbers.any()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz("masks and bands", EXAMPLES, check)


def test_values_that_fuzzing_puts_in_are_of_every_kind() -> None:
    """If it fails, fuzzing would no longer try what breaks readers most often."""
    seen = {type(ANYTHING.example()) for _ in range(60)}
    assert {int, float, str} <= seen
