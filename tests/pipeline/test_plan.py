"""The plan is what resume, cost and lineage rest on: it must follow from the inputs alone, and come back from its file unchanged."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, box

from engine.windows import window_starts
from pipeline.errors import JobError, SeriesChanged
from pipeline.job import JobSpec
from pipeline.period import Period, resolve_period
from pipeline.plan import Plan
from pipeline.planning import choose_bands, make_plan, newest, order_scenes, request_key
from pipeline.region import load_region
from pipeline.series import ModelFacts, Series
from pipeline.snap import AssetGrid
from stac.scenes import BandSource, MaskSource, Scene
from stac.search import Query, find_scenes

PERIOD = Period(date(2023, 8, 10), date(2023, 8, 20))
BOUNDS = (15.0, 46.0, 15.2, 46.15)
MASK = MaskSource("https://example.com/scl.tif", nodata=0, clear=(4, 5), cloud=(8, 9))


@dataclass(frozen=True)
class Resolved:
    name: str
    title: str = "Title"
    instruction: str = "segment it"
    threshold: float = 0.5
    color: str = "#112233"


MODEL = ModelFacts(
    fingerprint="f" * 64,
    bands=("coastal", "blue", "green", "red", "nir", "swir16", "swir22"),
    required_bands=("red", "nir"),
    classes=(Resolved("vegetation"), Resolved("building"), Resolved("water"), Resolved("bare")),
)


def asset_grid(band: BandSource) -> AssetGrid:
    return AssetGrid("EPSG:32633", Affine(10, 0, 399_965, 0, -10, 5_300_043))


def make_job(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "name": "styria",
        "region": list(BOUNDS),
        "period": str(PERIOD),
        "source": {"catalog": "c.json"},
        "output": "out",
        "grid": {"tile": 512},
    }
    return JobSpec.model_validate(values | changes)


def make_scene(name: str, day: int = 12, cloud: float | None = 10.0, bands: tuple[str, ...] = ("blue", "red", "nir"), **changes: Any) -> Scene:
    scene = Scene(
        id=name,
        collection="sentinel-2-l2a",
        sensor="sentinel-2",
        datetime=datetime(2023, 8, day, 10, 8, 8, 248000, tzinfo=UTC),
        footprint=box(14.9, 45.9, 15.4, 46.3),
        bands={band: BandSource(f"https://example.com/{name}/{band}.tif", offset=-0.1) for band in bands},
        mask=MASK,
        cloud_cover=cloud,
        processing="05.09",
        properties={"platform": "sentinel-2a", "gsd": 10},
    )
    return replace(scene, **changes)


def plan_of(scenes: list[Scene], job: JobSpec | None = None, model: ModelFacts = MODEL, **options: Any) -> Plan:
    job = job or make_job()
    return make_plan(job, load_region(job.region), PERIOD, scenes, model, asset_grid_of=asset_grid, **options)


scenes_strategy = st.lists(
    st.builds(
        make_scene,
        st.text("ABC123_", min_size=1, max_size=6),
        st.integers(10, 20),
        st.one_of(st.none(), st.sampled_from([0.0, 12.5, 80.0])),
        footprint=st.builds(lambda west, south: box(west, south, west + 0.15, south + 0.1), st.floats(14.95, 15.15), st.floats(45.95, 46.12)),
        updated=st.one_of(st.none(), st.datetimes(datetime(2023, 8, 1), datetime(2024, 8, 1)).map(lambda time: time.replace(tzinfo=UTC))),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda scene: scene.id,
)


@given(scenes_strategy, st.randoms(use_true_random=False), st.sampled_from(["least-cloudy", "latest", "median"]))
@settings(max_examples=30, deadline=None)
def test_the_order_in_which_a_catalog_lists_its_scenes_does_not_matter(scenes: list[Scene], random: Any, composite: str) -> None:
    shuffled = random.sample(scenes, len(scenes))
    job = make_job(composite=composite)
    plan, other = plan_of(scenes, job), plan_of(shuffled, job)
    assert plan == other
    assert plan.identity == other.identity
    assert plan.to_parquet() == other.to_parquet()


@given(scenes_strategy)
@settings(max_examples=30, deadline=None)
def test_a_plan_comes_back_from_its_file_unchanged(scenes: list[Scene]) -> None:
    plan = plan_of(scenes, refused=[("X", "no mask")])
    again = Plan.from_parquet(plan.to_parquet())
    assert again == plan
    assert again.identity == plan.identity
    assert again.region.digest == plan.region.digest


def test_a_plan_is_a_geoparquet_table_of_one_run_its_scenes_and_its_tiles(tmp_path: Path) -> None:
    plan = plan_of([make_scene("A"), make_scene("B", footprint=MultiPolygon([box(15, 46, 15.1, 46.1), box(15.2, 46, 15.3, 46.1)]))])
    path = tmp_path / "plan.parquet"
    path.write_bytes(plan.to_parquet())
    table = gpd.read_parquet(path)
    assert table.crs.to_epsg() == 4326
    assert list(table["kind"]) == ["run", "scene", "scene", *["tile"] * len(plan.tiles)]
    assert table.geometry.is_valid.all()
    assert Plan.from_parquet(path) == plan
    # Rows are a set: a tool that sorts or compresses the table otherwise changes nothing.
    table.sort_values("id").to_parquet(path, index=False, compression="gzip")
    assert Plan.from_parquet(path).identity == plan.identity


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not a plan"):
        Plan.from_parquet(b"nothing")
    with pytest.raises(JobError, match="not a plan"):
        Plan.from_parquet(tmp_path / "none.parquet")
    path = tmp_path / "other.parquet"
    gpd.GeoDataFrame({"kind": ["tile"], "id": ["a"], "document": ["{}"]}, geometry=[box(0, 0, 1, 1)], crs=4326).to_parquet(path)
    with pytest.raises(JobError, match="another version"):
        Plan.from_parquet(path)


@pytest.mark.parametrize(
    ("composite", "order"),
    [("least-cloudy", "D C B A E"), ("latest", "C A B D E"), ("median", "A B C D E")],
)
def test_scenes_have_the_documented_order(composite: str, order: str) -> None:
    scenes = [make_scene("A", 20, 30), make_scene("B", 20, 20), make_scene("C", 21, 20), make_scene("D", 12, 0), make_scene("E", 11, None)]
    assert " ".join(scene.id for scene in order_scenes(scenes, composite)) == order


def test_scenes_alike_in_all_are_ordered_by_id() -> None:
    assert [scene.id for scene in order_scenes([make_scene("B"), make_scene("A")], "least-cloudy")] == ["A", "B"]


def test_the_bands_used_are_those_that_every_usable_scene_has() -> None:
    scenes = [make_scene("A", bands=("blue", "red", "nir", "swir16", "wvp")), make_scene("B"), make_scene("C", bands=("blue", "red"))]
    kept, bands, refused = choose_bands(scenes, MODEL)
    assert bands == ("blue", "red", "nir")
    assert refused == (("C", "lacks band nir"),)
    assert [(scene.id, tuple(scene.bands)) for scene in kept] == [("A", bands), ("B", bands)]


@pytest.mark.parametrize(
    ("sensors", "model_bands", "bands", "read"),
    [
        (["nir", "nir08"], ("red", "nir"), ("red", "nir"), ["nir", "nir08"]),
        (["nir08", "nir08"], ("red", "nir"), ("red", "nir"), ["nir08", "nir08"]),
        (["nir08", "nir08"], ("red", "nir", "nir08"), ("red", "nir08"), ["nir08", "nir08"]),
        (["nir", "nir08"], ("red", "nir", "nir08"), ("red", "nir"), ["nir", "nir08"]),
        (["nir", "nir"], ("red", "nir08"), ("red", "nir08"), ["nir", "nir"]),
    ],
)
def test_the_near_infrared_that_a_sensor_has_is_read_once(
    sensors: list[str], model_bands: tuple[str, ...], bands: tuple[str, ...], read: list[str]
) -> None:
    scenes = [make_scene(str(place), bands=("red", band)) for place, band in enumerate(sensors)]
    kept, used, refused = choose_bands(scenes, replace(MODEL, bands=model_bands, required_bands=("red", "nir")))
    assert (used, refused) == (bands, ())
    assert [Path(scene.bands[bands[1]].href).stem for scene in kept] == read


def test_a_sensor_with_both_near_infrared_bands_gives_both() -> None:
    _, bands, _ = choose_bands([make_scene("A", bands=("red", "nir", "nir08"))], replace(MODEL, bands=("red", "nir", "nir08")))
    assert bands == ("red", "nir", "nir08")


def test_a_sensor_without_a_band_that_the_model_requires_is_refused() -> None:
    with pytest.raises(JobError, match=r"^source: sensor sentinel-2 lacks band nir, which the model requires"):
        plan_of([make_scene("A", bands=("blue", "red"))])


def test_two_scenes_of_one_id_are_refused() -> None:
    with pytest.raises(JobError, match=r"two scenes are called A; name one source.collection"):
        plan_of([make_scene("A"), make_scene("A", collection="landsat")])


def test_the_grid_has_the_phase_of_the_first_scene_by_id_whatever_its_rank() -> None:
    asked: list[str] = []

    def grid_of(band: BandSource) -> AssetGrid:
        asked.append(band.href)
        return asset_grid(band)

    job = make_job()
    plan = make_plan(job, load_region(job.region), PERIOD, [make_scene("B", cloud=0), make_scene("A", cloud=50)], MODEL, asset_grid_of=grid_of)
    assert asked == ["https://example.com/A/blue.tif"]
    assert plan.grid.origin == (5.0, 3.0)
    assert plan.scenes[0].id == "B"


def test_an_auto_grid_stays_what_it_was_when_the_series_began() -> None:
    began = plan_of([make_scene("A")]).series
    later = plan_of([make_scene("0")], frozen=began, job=make_job(region=[14.9, 45.9, 15.3, 46.0]))
    assert later.grid == began.grid
    elsewhere = make_plan(
        make_job(), load_region(BOUNDS), PERIOD, [make_scene("0")], MODEL, asset_grid_of=lambda band: AssetGrid("", Affine.identity())
    )
    assert elsewhere.grid.origin == (0.0, 0.0)


def test_a_given_origin_is_taken_as_it_is() -> None:
    plan = plan_of([make_scene("A")], make_job(grid={"tile": 512, "origin": [500_000, 5_000_000]}))
    assert plan.grid.origin == (500_000.0, 5_000_000.0)
    assert plan.tiles[0].id.startswith("epsg32633-10m-e0000-n")


def test_a_tile_lists_the_scenes_that_its_halo_touches_in_the_total_order() -> None:
    near = box(15.2 + 0.012, 46.0, 15.4, 46.2)
    far = box(15.2 + 0.2, 46.0, 15.5, 46.2)
    scenes = [
        make_scene("near", cloud=0, footprint=near),
        make_scene("far", cloud=0, footprint=far),
        make_scene("over", cloud=5),
        make_scene("best", cloud=1),
    ]
    plan = plan_of(scenes)
    assert [scene.id for scene in plan.scenes] == ["far", "near", "best", "over"]
    east = max(plan.tiles, key=lambda tile: tile.box.right)
    west = min(plan.tiles, key=lambda tile: tile.box.left)
    assert east.scenes == ("near", "best", "over")
    assert west.scenes == ("best", "over")
    assert plan.scenes_of(west)[0].id == "best"


def test_a_tile_list_of_scenes_survives_the_antimeridian() -> None:
    job = make_job(region=[179.9, -17.1, -179.9, -17.0])
    split = MultiPolygon([box(179.5, -17.5, 180, -16.5), box(-180, -17.5, -179.5, -16.5)])
    plan = make_plan(job, load_region(job.region), PERIOD, [make_scene("A", footprint=split)], MODEL, asset_grid_of=asset_grid)
    assert plan.grid.crs in ("EPSG:32760", "EPSG:32701")
    assert all(tile.scenes == ("A",) for tile in plan.tiles)
    assert Plan.from_parquet(plan.to_parquet()) == plan


FINGERPRINT_CHANGES: dict[str, Callable[[], Plan]] = {
    "a new processing": lambda: plan_of([make_scene("A", processing="05.10")]),
    "a new scene": lambda: plan_of([make_scene("A"), make_scene("B")]),
    "another offset": lambda: plan_of([replace(make_scene("A"), bands={name: BandSource("x") for name in ("blue", "red", "nir")})]),
    "another mask rule": lambda: plan_of([make_scene("A", mask=replace(MASK, clear=(4,)))]),
    "another model": lambda: plan_of([make_scene("A")], model=replace(MODEL, fingerprint="0" * 64)),
    "another composite": lambda: plan_of([make_scene("A")], make_job(composite="median")),
    "another dilation": lambda: plan_of([make_scene("A")], make_job(mask={"dilate": 0})),
    "another instruction": lambda: plan_of(
        [make_scene("A")], model=replace(MODEL, classes=(Resolved("vegetation", instruction="x"), *MODEL.classes[1:]))
    ),
    "explanations": lambda: plan_of([make_scene("A")], make_job(explain=False)),
}


@pytest.mark.parametrize("change", FINGERPRINT_CHANGES)
def test_a_tile_is_made_anew_when_something_that_decides_it_changed(change: str) -> None:
    before, after = plan_of([make_scene("A")]), FINGERPRINT_CHANGES[change]()
    assert {tile.id for tile in before.tiles} == {tile.id for tile in after.tiles}
    assert not {tile.fingerprint for tile in before.tiles} & {tile.fingerprint for tile in after.tiles}
    assert before.identity != after.identity


def test_a_tile_is_not_made_anew_for_what_changes_no_pixel() -> None:
    before = plan_of([make_scene("A")])
    moved = {name: replace(band, href="s3://elsewhere/x.tif") for name, band in make_scene("A").bands.items()}
    after = plan_of(
        [make_scene("A", bands=("blue", "red", "nir"), updated=datetime(2024, 1, 1, tzinfo=UTC), href="s3://x")], make_job(license="CC0-1.0")
    )
    after = plan_of([replace(after.scenes[0], bands=moved)], block=256)
    assert [tile.fingerprint for tile in after.tiles] == [tile.fingerprint for tile in before.tiles]


def test_only_tiles_whose_part_of_the_region_changed_are_made_anew() -> None:
    before = {tile.id: tile.fingerprint for tile in plan_of([make_scene("A")]).tiles}
    after = {tile.id: tile.fingerprint for tile in plan_of([make_scene("A")], make_job(region=[15.0, 46.0, 15.25, 46.15])).tiles}
    same = {name for name in before if before[name] == after[name]}
    assert same
    assert set(before) - same


def test_a_tile_without_an_unreadable_scene_has_another_fingerprint() -> None:
    plan = plan_of([make_scene("A"), make_scene("B")])
    tile = plan.tiles[0]
    assert plan.fingerprint_of(tile, plan.scenes_of(tile)) == tile.fingerprint
    assert plan.fingerprint_of(tile, plan.scenes_of(tile)[:1]) != tile.fingerprint


def test_a_block_size_changes_neither_identity_nor_fingerprints() -> None:
    plan, other = plan_of([make_scene("A")]), plan_of([make_scene("A")], block=512)
    assert plan.identity == other.identity
    assert plan.tiles == other.tiles
    assert other.estimate.windows > 0
    assert len(other.blocks_of(other.tiles[0], 128)) > len(other.blocks_of(other.tiles[0]))


def test_created_comes_from_the_inputs_never_from_the_clock() -> None:
    updated = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert newest([make_scene("A", 12), make_scene("B", 14)], PERIOD) == make_scene("B", 14).datetime
    assert newest([make_scene("A", 12, updated=updated), make_scene("B", 14)], PERIOD) == updated
    assert newest([], PERIOD) == PERIOD.first_instant


def test_the_estimate_counts_every_window_that_a_block_computes() -> None:
    plan = plan_of([make_scene("A"), make_scene("B", cloud=90.0)], block=512)
    spans = [((block.top, block.bottom), (block.left, block.right)) for tile in plan.tiles for block in plan.blocks_of(tile)]
    windows = sum(len(window_starts(*rows, 320, 256)) * len(window_starts(*columns, 320, 256)) for rows, columns in spans)
    assert plan.estimate.windows == windows
    pixels = sum(tile.box.shape[0] * tile.box.shape[1] for tile in plan.tiles)
    assert plan.estimate.bytes == pytest.approx(2 * pixels * 4 * 1.3, rel=0.01)
    assert plan.estimate.core_hours > plan.estimate.gpu_hours > 0


def test_scenes_behind_a_clear_one_are_not_expected_to_be_read() -> None:
    clear, both = plan_of([make_scene("A", cloud=0.0)]), plan_of([make_scene("A", cloud=0.0), make_scene("B", cloud=50.0)])
    assert both.estimate.bytes == clear.estimate.bytes
    median = plan_of([make_scene("A", cloud=0.0), make_scene("B", cloud=50.0)], make_job(composite="median"))
    assert median.estimate.bytes == pytest.approx(2 * clear.estimate.bytes, rel=0.01)


def test_what_is_asked_for_is_known_before_any_search() -> None:
    region = load_region(BOUNDS)
    key = request_key(make_job(), region, MODEL)
    assert key == request_key(make_job(output="elsewhere", fail_on_empty=True), region, MODEL)
    assert key == request_key(make_job(source={"catalog": "c.json", "headers": {"A": "secret"}}), region, MODEL)
    for changes in (
        {"period": "P30D"},
        {"name": "other"},
        {"grid": {"tile": 256}},
        {"source": {"catalog": "c.json", "exclude": ["A"]}},
        {"explain": False},
    ):
        assert key != request_key(make_job(**changes), region, MODEL)
    assert key != request_key(make_job(), load_region([15, 46, 16, 47]), MODEL)
    assert key != request_key(make_job(), region, replace(MODEL, fingerprint="0" * 64))
    assert plan_of([make_scene("A")]).key == key


def test_an_interrupted_run_of_a_moving_period_is_known_the_day_after() -> None:
    job, region = make_job(period="P30D"), load_region(BOUNDS)
    keys = set()
    for today in (date(2023, 9, 1), date(2023, 9, 2)):
        period = resolve_period(job.period, today)
        keys.add(make_plan(job, region, period, [make_scene("A")], MODEL, asset_grid_of=asset_grid).key)
    assert len(keys) == 1


def test_a_series_that_changed_is_refused_with_what_changed() -> None:
    series = plan_of([make_scene("A")]).series
    again = Series.from_dict(series.to_dict())
    assert again == series
    series.check_unchanged(again)
    changed = plan_of([make_scene("A")], make_job(grid={"tile": 512, "resolution": 20}, composite="latest")).series
    with pytest.raises(
        SeriesChanged, match=r"grid.resolution was 10.0, is 20.0; .*composite was least-cloudy, is latest; choose another name or run with"
    ):
        series.check_unchanged(changed)
    renamed = plan_of([make_scene("A")], make_job(classes=["vegetation", "building", "water", {"name": "bare", "code": 9}])).series
    with pytest.raises(SeriesChanged, match=r"classes was \[1 vegetation, 2 building, 3 water, 4 bare\], is \[.*9 bare\]"):
        series.check_unchanged(renamed)


def test_a_plan_without_a_scene_can_be_made_but_maps_nothing() -> None:
    plan = plan_of([])
    assert plan.scenes == ()
    assert plan.estimate.bytes == 0
    assert all(tile.scenes == () for tile in plan.tiles)


def test_real_scenes_lie_on_the_grid_that_they_choose(shared_data: Path) -> None:
    catalog = str(shared_data / "scenes" / "styria-s2" / "catalog.json")
    region = load_region([15.5, 46.5, 16.0, 47.0])
    query = Query(catalog, None, region.geometry, PERIOD.first_instant, PERIOD.last_instant, None, (), {})
    found = find_scenes(query)
    job = make_job(region=[15.5, 46.5, 16.0, 47.0], grid={"resolution": 120, "tile": 1024})
    plan = make_plan(job, region, PERIOD, found.scenes, MODEL)
    assert plan.bands == ("blue", "green", "red", "nir")
    assert len(plan.scenes) >= 3
    assert [scene.cloud_cover for scene in plan.scenes] == sorted(scene.cloud_cover or 0 for scene in plan.scenes)
    assert plan.grid.crs == "EPSG:32633"
    import rasterio

    with rasterio.open(plan.scenes[0].bands["blue"].href) as dataset:
        assert (dataset.transform.c - plan.grid.origin[0]) % 120 == 0
        assert (dataset.transform.f - plan.grid.origin[1]) % 120 == 0
    assert plan.created >= max(scene.datetime for scene in plan.scenes) - timedelta(0)
