import json
import re
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Picture
from shapely.geometry import box as rectangle

from engine.errors import UnknownBand
from engine.lexicon import DEFAULT_TERMS, Lexicon
from engine.spie import dataset
from engine.spie.chips import SLIVER, Chip, Cutting, footprint, place_numbers, splits
from engine.spie.dataset import BuildOptions, build, codes_of, number, words_of
from engine.spie.errors import InconsistentSample, IndexUnavailable, InvalidBuild, UnusableImagery
from engine.spie.imagery import Box, Calibration, ground_resolution
from engine.spie.opening import open_imagery
from engine.spie.priors import PRIORS
from engine.spie.samples import Sample, check_attributes, check_sample, from_index, from_labels, mask_of_runs, run_lengths
from engine.spie.sentences import answer_of, attributes_json, check_answer, phrase_of, summarise
from pipeline.cli import app

WATER, PLANTS, SOIL = (0.05, 0.07, 0.04, 0.02, 0.01), (0.03, 0.07, 0.04, 0.40, 0.18), (0.12, 0.15, 0.20, 0.26, 0.42)
BANDS = ("blue", "green", "red", "nir", "swir16")
GRID = Affine(10, 0, 500_000, 0, -10, 5_200_000)
LAKE, FIELD = (slice(10, 40), slice(12, 52)), (slice(60, 100), slice(70, 130))
CODES = {80: "water", 10: "vegetation"}


def landscape(height=128, width=160):
    """Soil with a lake at the top left and a field at the bottom right."""
    cover = np.zeros((height, width), np.uint8)
    cover[LAKE], cover[FIELD] = 80, 10
    spectra = np.array([SOIL] * 256, np.float32)
    spectra[80], spectra[10] = WATER, PLANTS
    noise = np.random.default_rng(0).normal(0, 0.002, (5, height, width))
    return (np.moveaxis(spectra[cover], -1, 0) + noise).clip(0.001).astype(np.float32), cover


def write(path, bands, crs="EPSG:32632", transform=GRID, nodata=None, descriptions=None):
    profile = {"driver": "GTiff", "dtype": bands.dtype, "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, nodata=nodata) as target:
        target.write(bands)
        if descriptions:
            target.descriptions = descriptions
    return path


@pytest.fixture
def scene(tmp_path):
    reflectance, cover = landscape()
    numbers = np.rint(reflectance * 10_000).astype(np.uint16)
    numbers[:, :, 150:] = 0
    write(tmp_path / "scene.tif", numbers, nodata=0, descriptions=BANDS)
    write(tmp_path / "cover.tif", cover[None])
    return tmp_path / "scene.tif"


def options(scene, **changes):
    defaults = BuildOptions((str(scene),), calibration=Calibration(1e-4), cutting=Cutting(64, 48))
    return replace(defaults, **changes)


def rows_of(directory):
    return pq.read_table(directory / "spie.parquet").to_pylist()


def contents(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def labelled(scene, **changes):
    return options(scene, labels=str(scene.parent / "cover.tif"), classes=tuple(f"{code}={name}" for code, name in CODES.items()), **changes)


# The data set


def test_a_data_set_is_complete_consistent_and_the_same_twice(scene, tmp_path):
    built = build(options(scene, terms="public domain"), tmp_path / "a")
    build(options(scene, terms="public domain"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    rows = rows_of(tmp_path / "a")
    assert built.samples == len(rows) == 4 * built.chips
    for row in rows:
        mask = np.asarray(Picture.open(tmp_path / "a" / row["gt_image"]))
        picture = Picture.open(tmp_path / "a" / row["image"])
        valid = mask_of_runs(row["valid_runs"], mask.shape)
        assert set(np.unique(mask)) <= {0, 1} and (picture.mode, picture.size) == ("RGB", (64, 64))
        assert (mask_of_runs(row["mask_runs"], mask.shape) == mask).all() and not (mask.astype(bool) & ~valid).any()
        assert (row["mask_pixels"], row["valid_pixels"], row["present"]) == (mask.sum(), valid.sum(), bool(mask.any()))
        assert row["instruction"].endswith(f" Attributes: {row['attributes']}") and row["attributes"] == row["mask_attributes"]
    assert "public domain" in (tmp_path / "a" / "README.md").read_text()


def test_masks_are_the_lake_and_the_field_and_absent_classes_are_told(scene, tmp_path):
    build(options(scene, cutting=Cutting(160, 160)), tmp_path / "out")
    rows = {row["class"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 4
    _, cover = landscape()
    for name, code in (("water", 80), ("vegetation", 10)):
        mask = np.asarray(Picture.open(tmp_path / "out" / rows[name]["gt_image"]), bool)[:128]
        truth = (cover == code) & (np.arange(160) < 150)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.97
    (lake,) = json.loads(rows["water"]["attributes"])
    assert (lake["Size of area"], lake["Location"], lake["Bounding box"][0]) == ("huge", "top-left", [0.075, 0.062])
    assert "11.97 hectares, in one region. The only region is huge and lies in the top-left" in rows["water"]["answer"]
    assert rows["water"]["valid_pixels"] == 128 * 150 and rows["water"]["resolution_m"] == pytest.approx(10, rel=0.01)
    assert rows["building"]["answer"].endswith("It is empty: this image has no buildings.") and rows["building"]["attributes"] == "[]"


def test_the_table_places_each_chip_on_the_ground_and_keeps_its_reflectance(scene, tmp_path):
    build(options(scene), tmp_path / "out")
    for row in rows_of(tmp_path / "out"):
        top, left, height, width = row["window"]
        assert Affine(*row["transform"]) == GRID @ Affine.translation(left, top) and row["crs"] == "EPSG:32632"
        with rasterio.open(tmp_path / "out" / row["reflectance"]) as chip, rasterio.open(scene) as source:
            stored = source.read(window=((top, top + height), (left, left + width)))
            assert chip.descriptions == BANDS and list(chip.transform)[:6] == row["transform"]
            here = chip.read()[:, : stored.shape[1], : stored.shape[2]]
            assert (np.where(here == chip.nodata, 0, here) == stored).all()


def test_the_official_lists_hold_the_same_samples_in_the_official_keys(scene, tmp_path):
    build(options(scene, val_share=0.4), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    for split in ("train", "val"):
        items = json.loads((tmp_path / "out" / f"{split}.json").read_text())
        assert [item["id"] for item in items] == [row["id"] for row in rows if row["split"] == split] and items
        for item in items:
            assert set(item) == {"id", "image", "gt_image", "conversations"} and (tmp_path / "out" / item["image"]).is_file()
            assert [turn["from"] for turn in item["conversations"]] == ["human", "gpt"] and item["conversations"][0]["value"].startswith("<image>\n")
    places = {split: {row["place"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert not places["train"] & places["val"]


# Sources


def test_the_source_of_attributes_is_stored_and_labels_never_pass_for_indices(scene, tmp_path):
    for source in ("index", "labels", "none"):
        build(labelled(scene, source=source), tmp_path / source)
    build(options(scene, classes=("water", "vegetation")), tmp_path / "alone")
    index, labels, none, alone = (rows_of(tmp_path / name) for name in ("index", "labels", "none", "alone"))
    assert (
        {row["source"] for row in index} == {"index"}
        and {row["source"] for row in labels} == {"labels"}
        and {row["source"] for row in none} == {"none"}
    )
    assert all(row["mask_source"] == "labels" for row in index + labels + none)
    assert all(row["attributes"] == row["mask_attributes"] for row in labels)
    assert all(row["attributes"] is None and "Attributes" not in row["instruction"] for row in none)
    seen = {(row["image"], row["class"]): row["attributes"] for row in alone}
    assert all(row["attributes"] == seen[row["image"], row["class"]] for row in index)
    assert [row["mask_runs"] for row in index] == [row["mask_runs"] for row in labels] == [row["mask_runs"] for row in none]


def test_other_labels_change_masks_and_answers_but_no_attribute_from_indices(scene, tmp_path):
    build(labelled(scene), tmp_path / "right")
    _, cover = landscape()
    write(scene.parent / "cover.tif", np.where(cover == 80, 10, 80).astype(np.uint8)[None])
    build(labelled(scene), tmp_path / "swapped")
    right, swapped = rows_of(tmp_path / "right"), rows_of(tmp_path / "swapped")
    assert [row["instruction"] for row in right] == [row["instruction"] for row in swapped]
    assert [row["answer"] for row in right] != [row["answer"] for row in swapped]


def test_a_labelled_class_without_index_rules_carries_no_attributes_and_says_why(scene, tmp_path):
    build(replace(labelled(scene), classes=("80=water", "10=road")), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert {(row["class"], row["source"]) for row in rows} == {("water", "index"), ("road", "none")}
    assert all(("no index rule for class 'road'" in row["why_none"]) == (row["class"] == "road") for row in rows)
    assert "no index rule for class 'road'" in (tmp_path / "out" / "README.md").read_text()


def test_rules_that_no_sample_used_are_neither_in_the_card_nor_in_the_table(scene, tmp_path):
    for source in ("index", "labels", "none"):
        build(labelled(scene, source=source), tmp_path / source)
        card, rules = (tmp_path / source / "README.md").read_text(), [json.loads(row["thresholds"]) for row in rows_of(tmp_path / source)]
        used = source == "index"
        assert ("## Index rules" in card) == ("Otsu" in card) == ("Index masks were opened" in card) == used
        assert all(bool(each) == used for each in rules)
    build(options(scene, source="none"), tmp_path / "masks")
    assert "## Index rules" in (tmp_path / "masks" / "README.md").read_text() and all(
        json.loads(row["thresholds"]) for row in rows_of(tmp_path / "masks")
    )


def evidence(mask, make, valid=None):
    return make(mask, summarise(mask, mask.size if valid is None else valid, 10.0, 1))


def test_a_sample_that_contradicts_itself_is_refused():
    mask = np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    seen, told = evidence(mask, from_index), evidence(mask, from_labels)
    sample = Sample("a", "water", seen, told, np.ones_like(mask))
    check_sample(sample)
    other = evidence(~mask, from_index)
    with pytest.raises(InconsistentSample, match="both come from 'index' and differ"):
        check_sample(replace(sample, truth=other))
    with pytest.raises(InconsistentSample, match="covers pixels without data"):
        check_sample(replace(sample, valid=~mask))
    with pytest.raises(InconsistentSample, match="not the one described"):
        check_sample(replace(sample, truth=replace(told, mask=np.zeros_like(mask))))


masks = arrays.arrays(bool, st.tuples(st.integers(8, 40), st.integers(8, 40)))


@given(masks, st.sampled_from([1.0, 10.0, 28.5]), st.integers(1, 12), st.sampled_from(["water", "bare ground"]))
@settings(max_examples=80, deadline=None)
def test_answers_agree_with_their_mask_and_a_changed_word_does_not(mask, resolution, minimum, phrase):
    summary = summarise(mask, mask.size, resolution, minimum)
    answer, attributes = answer_of(phrase, summary), attributes_json(summary.regions)
    check_answer(answer, phrase, summary, attributes)
    check_attributes(attributes)
    for wrong in mutated(answer):
        with pytest.raises(InconsistentSample):
            check_answer(wrong, phrase, summary, attributes)


def mutated(answer):
    """Return answers in which one thing is wrong."""
    numbers = list(re.finditer(r"\d+(\.\d+)?", answer))
    for match in numbers:
        digits = match[0]
        changed = digits[:-1] + str((int(digits[-1]) + 3) % 10)
        yield answer[: match.start()] + changed + answer[match.end() :]
    for old, new in (
        ("top-", "bottom-"),
        ("-left", "-right"),
        ("huge", "tiny"),
        ("It is empty", "It covers 3.00 percent"),
        ("one region.", "2 regions."),
    ):
        if old in answer:
            yield answer.replace(old, new)


@given(masks)
@settings(max_examples=40, deadline=None)
def test_runs_give_the_mask_back(mask):
    runs = run_lengths(mask)
    assert sum(runs) == mask.size and (mask_of_runs(runs, mask.shape) == mask).all()


def test_classes_are_named_in_words_that_the_model_knows():
    lexicon = Lexicon(DEFAULT_TERMS)
    assert all(lexicon.find(phrase_of(name)) == name for name in PRIORS)


# Labels and clouds


def test_vector_labels_are_burnt_by_their_column_in_any_crs(scene, tmp_path):
    corner = GRID @ (12, 10), GRID @ (52, 40)
    shapes = geopandas.GeoDataFrame(
        {"cover": ["pond", "barn"]}, geometry=[rectangle(*corner[0], *corner[1]), rectangle(0, 0, 1, 1)], crs="EPSG:32632"
    )
    shapes.to_crs("EPSG:4326").to_file(tmp_path / "labels.gpkg")
    chosen = options(scene, labels=str(tmp_path / "labels.gpkg"), label_field="cover", classes=("pond=water",), cutting=Cutting(160, 160))
    build(chosen, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["mask_pixels"] == pytest.approx(1200, abs=10) and row["mask_source"] == "labels"
    with pytest.raises(UnusableImagery, match="no column 'land'; it has cover"):
        build(replace(chosen, label_field="land"), tmp_path / "other")


def test_labels_of_another_grid_are_laid_over_the_pixels_and_end_where_they_end(scene, tmp_path):
    _, cover = landscape()
    write(tmp_path / "cover.tif", cover[None, :, :100].repeat(2, 1).repeat(2, 2), transform=GRID @ Affine.scale(0.5))
    build(labelled(scene, cutting=Cutting(160, 160)), tmp_path / "out")
    rows = {row["class"]: row for row in rows_of(tmp_path / "out")}
    assert rows["water"]["mask_pixels"] == 1200 and rows["water"]["valid_pixels"] == 128 * 100
    assert rows["vegetation"]["mask_pixels"] == 40 * 30


def test_labels_that_cannot_be_meant_are_refused(scene, tmp_path):
    with pytest.raises(UnusableImagery, match="have none of the codes 81"):
        build(replace(labelled(scene), classes=("81=water",)), tmp_path / "out")
    with pytest.raises(UnusableImagery, match="codes are whole numbers, not lake"):
        build(replace(labelled(scene), classes=("lake=water",)), tmp_path / "out")
    with pytest.raises(InvalidBuild, match="names consist of letters"):
        build(replace(labelled(scene), classes=("80=still/water",)), tmp_path / "out")
    _, cover = landscape()
    far = write(tmp_path / "far.tif", cover[None], transform=GRID @ Affine.translation(10_000, 0))
    with pytest.raises(UnusableImagery, match="say nothing about any of"):
        build(replace(labelled(scene), labels=str(far)), tmp_path / "out")
    decimals = write(tmp_path / "decimals.tif", cover[None] + np.float32(0.5))
    with pytest.raises(UnusableImagery, match="numbers with decimals"):
        build(replace(labelled(scene), labels=str(decimals)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clouds_and_no_data_are_in_no_mask_and_in_no_share(scene, tmp_path):
    clouds = np.zeros((1, 128, 160), np.uint8)
    clouds[0, :, :32] = 9
    write(tmp_path / "scene_SCL.tif", clouds)
    build(options(scene, clouds="SCL", cloud_values=(3, 9), cutting=Cutting(160, 160)), tmp_path / "codes")
    build(options(scene, clouds="SCL", cloud_bits=(0, 5), cutting=Cutting(160, 160)), tmp_path / "bits")
    assert contents(tmp_path / "codes") == contents(tmp_path / "bits")
    for row in rows_of(tmp_path / "codes"):
        assert row["valid_pixels"] == 128 * 118 and not mask_of_runs(row["mask_runs"], (160, 160))[:, :32].any()


# Imagery


def test_one_band_files_are_joined_by_the_ends_of_their_names(tmp_path):
    reflectance, _ = landscape()
    for date in ("may", "june"):
        for key, band in zip(("B02", "B03", "B04", "B08"), reflectance, strict=False):
            write(tmp_path / f"{date}_{key}.tif", band[None])
    keys = ("B04=red", "B08=nir", "B02=blue", "B03=green")
    images = open_imagery([str(tmp_path)], keys)
    assert [image.name for image in images] == ["june", "may"]
    assert np.allclose(images[0].reflectance(Box(0, 0, 128, 160)), reflectance[[2, 3, 0, 1]])
    (tmp_path / "may_B08.tif").unlink()
    with pytest.raises(UnusableImagery, match="no file for B08 beside B02, B03, B04"):
        open_imagery([str(tmp_path)], keys)


def test_boxes_beyond_the_image_are_no_data(scene):
    (image,) = open_imagery([str(scene)], (), Calibration(1e-4))
    around = image.reflectance(Box(-3, -2, 10, 8))
    assert np.isnan(around[:, :3]).all() and np.isnan(around[:, :, :2]).all() and np.isfinite(around[:, 3:, 2:]).all()
    assert np.isnan(image.reflectance(Box(500, 500, 4, 4))).all()


def test_scale_and_offset_make_reflectance(tmp_path):
    numbers = np.full((1, 8, 8), 3000, np.uint16)
    write(tmp_path / "a.tif", numbers, descriptions=("red",))
    (image,) = open_imagery([str(tmp_path / "a.tif")], (), Calibration(1e-4, -0.1))
    assert image.reflectance(Box(0, 0, 8, 8)) == pytest.approx(0.2)
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.scales, target.offsets = [2e-4], [-0.2]
    assert open_imagery([str(tmp_path / "a.tif")])[0].reflectance(Box(0, 0, 8, 8)) == pytest.approx(0.4)


def test_imagery_that_is_not_what_was_said_is_refused(scene, tmp_path):
    with pytest.raises(UnusableImagery, match="whole numbers without their scale"):
        build(options(scene, calibration=Calibration()), tmp_path / "out")
    with pytest.raises(UnusableImagery, match=r"the median is .*, reflectance lies between 0 and 1"):
        build(options(scene, calibration=Calibration(1.0)), tmp_path / "out")
    with pytest.raises(UnusableImagery, match="has 5 channels, --bands names 2"):
        build(options(scene, bands=("red", "nir")), tmp_path / "out")
    with pytest.raises(UnknownBand, match="'nri' is not a canonical band name; nearest: nir"):
        build(options(scene, bands=("blue", "green", "red", "nri", "-")), tmp_path / "out")
    with pytest.raises(UnusableImagery, match="not described by canonical band names"):
        open_imagery([str(write(tmp_path / "plain.tif", np.zeros((2, 8, 8), np.float32)))])
    with pytest.raises(UnusableImagery, match="no pixel with data"):
        build(options(write(tmp_path / "empty.tif", np.full((1, 8, 8), np.nan, np.float32), descriptions=("red",))), tmp_path / "out")
    with pytest.raises(UnusableImagery, match=r"no GeoTIFF and no .npz at"):
        open_imagery([str(tmp_path / "nothing*")])
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))


def test_a_scale_or_an_offset_that_is_surely_not_meant_is_warned_of(scene, tmp_path, caplog):
    build(options(scene), tmp_path / "right")
    assert "wrongly scaled" not in caplog.text
    with rasterio.open(scene) as source:
        numbers = np.rint(source.read() * (255 / 5000)).clip(0, 255).astype(np.uint8)
    photograph = write(tmp_path / "photograph.tif", numbers, nodata=0, descriptions=BANDS)
    build(options(photograph), tmp_path / "bytes")
    assert "1 of 1 images look wrongly scaled" in caplog.text and "without --scale 1/255" in caplog.text
    build(options(scene, calibration=Calibration(1e-4, -0.2)), tmp_path / "offset")
    assert "is --offset right?" in caplog.text


def test_real_scenes_are_not_warned_of(shared_data: Path):
    chips = str(shared_data / "chips" / "hls-worldcover" / "val.npz")
    names = ("coastal", "blue", "green", "red", "nir", "swir16", "swir22")
    scenes = dataset.open_scenes(BuildOptions((chips,), names, Calibration(1e-4), cutting=Cutting(128, 128), resolution=30.0))
    assert len(scenes) == 41 and not any(each.doubt for each in scenes)


def test_metres_come_from_the_georeference_in_any_crs(tmp_path):
    band = np.zeros((1, 10, 10), np.float32)
    degrees = write(tmp_path / "d.tif", band, "EPSG:4326", Affine(1e-4, 0, 10, 0, -1e-4, 60), descriptions=("red",))
    mercator = write(tmp_path / "m.tif", band, "EPSG:3857", Affine(20, 0, 1_113_194, 0, -20, 8_399_737), descriptions=("red",))
    nowhere = write(tmp_path / "n.tif", band, None, Affine.identity(), descriptions=("red",))
    metres = {path.stem: ground_resolution(open_imagery([str(path)])[0], 30.0 if path == nowhere else None) for path in (degrees, mercator, nowhere)}
    assert metres["d"] == pytest.approx(np.sqrt(11.14 * 5.58), rel=0.01)
    assert metres["m"] == pytest.approx(10.0, rel=0.01) and metres["n"] == 30.0
    with pytest.raises(UnusableImagery, match="give --resolution"):
        ground_resolution(open_imagery([str(nowhere)])[0])
    with pytest.raises(UnusableImagery, match=r"pixels of .* m, not of --resolution 30 m"):
        ground_resolution(open_imagery([str(mercator)])[0], 30.0)


def test_the_coarsest_image_sets_the_metres_of_cleaning(tmp_path):
    reflectance, _ = landscape()
    write(tmp_path / "coarse.tif", reflectance[:, ::3, ::3], transform=GRID @ Affine.scale(3), descriptions=BANDS)
    write(tmp_path / "fine.tif", reflectance, descriptions=BANDS)
    both = dataset.open_scenes(BuildOptions((str(tmp_path / "coarse.tif"), str(tmp_path / "fine.tif"))))
    assert [each.reading.morphology.radii(each.resolution) for each in both] == [(1, 2), (3, 6)]
    assert [each.reading.morphology.minimum_pixels(each.resolution) for each in both] == [50, 450]
    (alone,) = dataset.open_scenes(BuildOptions((str(tmp_path / "coarse.tif"),)))
    assert alone.reading.morphology.radii(alone.resolution) == (1, 2) and alone.reading.morphology.minimum_pixels(alone.resolution) == 50


# Chips, places, splits


@given(st.integers(1, 700), st.integers(8, 96), st.data(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_chips_cover_a_side_without_gaps_and_blocks_do_not_overlap(size, chip, data, block):
    stride = data.draw(st.integers(1, chip))
    starts = Cutting(chip, stride, block).starts(size)
    assert starts[0] == 0 and starts == sorted(set(starts))
    covered = np.zeros(max(size, chip), bool)
    for start in starts:
        covered[start : start + chip] = True
    assert covered.all() and (starts[-1] + chip == size or size < chip)


def test_blocks_of_one_scene_are_places_of_their_own_and_dates_of_one_place_share_it(tmp_path):
    reflectance, _ = landscape(256, 256)
    for name, shift in (("a", 0), ("b", 3)):
        write(tmp_path / f"{name}.tif", reflectance, transform=GRID @ Affine.translation(shift / 10, 0), descriptions=BANDS)
    images = open_imagery([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")])
    chips = [Chip(image, box) for image in images for box in Cutting(64, 64, 1).boxes(image.shape)]
    places = place_numbers(chips)
    assert len(chips) == 32 and places[:16] == list(range(16)) == places[16:]
    overlapping = [Chip(image, box) for image in images for box in Cutting(64, 48, 2).boxes(image.shape)]
    numbers = place_numbers(overlapping)
    assert len(set(numbers)) == 4
    shapes = [footprint(chip) for chip in overlapping]
    for a, one in zip(numbers, shapes, strict=True):
        for b, other in zip(numbers, shapes, strict=True):
            assert a == b or one.intersection(other).area / one.area <= SLIVER


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0, 0.5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_place_is_in_one_split_and_val_is_no_more_than_twice_its_share(places, share, seed):
    class Named:
        def __init__(self, name):
            self.name = name

    chips = [Named(f"chip{i}") for i in range(len(places))]
    parts = splits(chips, places, share, seed)
    assert all(len({part for part, place in zip(parts, places, strict=True) if place == each}) == 1 for each in set(places))
    sizes = {place: places.count(place) for place in places}
    assert parts.count("val") <= max(2 * share * len(places), min(sizes.values()))
    assert ("val" in parts) == (share > 0 and len(sizes) > 1) and "train" in parts


# Options, failures, command line


def test_an_index_or_a_class_asked_for_by_name_must_be_possible(scene, tmp_path):
    with pytest.raises(IndexUnavailable, match="index NDRE needs rededge071"):
        build(options(scene, indices=("NDVI", "NDRE")), tmp_path / "out")
    with pytest.raises(IndexUnavailable, match="class 'building': index NDBI needs swir16"):
        build(options(scene, bands=("blue", "green", "red", "nir", "-"), classes=("building",)), tmp_path / "out")
    build(options(scene, bands=("blue", "green", "red", "nir", "-"), indices=("NDVI", "SAVI")), tmp_path / "out")
    rows, card = rows_of(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    assert {row["class"] for row in rows} == {"water", "vegetation", "bare"} and "class 'building': index NDBI needs swir16" in card
    assert all(set(json.loads(row["index_means"])) == {"NDVI", "SAVI"} for row in rows)


def test_options_that_contradict_one_another_are_refused(scene, tmp_path):
    for changes, message in (
        ({"source": "labels"}, "source labels needs --labels"),
        ({"source": "gt"}, "none of index, labels, none"),
        ({"classes": ("80=water",)}, "needs --labels"),
        ({"clouds": "SCL"}, "--cloud-values or --cloud-bits"),
        ({"minimum_valid": 2.0}, "--min-valid"),
    ):
        with pytest.raises(InvalidBuild, match=message):
            options(scene, **changes)
    with pytest.raises(InvalidBuild, match="stride 65"):
        Cutting(64, 65)
    with pytest.raises(InvalidBuild, match=r"none of \d chips has 100% of valid pixels"):
        build(options(write(tmp_path / "holes.tif", holes(), descriptions=("red", "nir")), minimum_valid=1.0), tmp_path / "out")


def holes():
    band = np.full((2, 128, 128), 0.2, np.float32)
    band[:, ::8, ::8] = np.nan
    return band


def test_a_folder_in_use_is_left_alone_and_a_failure_leaves_nothing(scene, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(InvalidBuild, match="there already and not empty"):
        build(options(scene), tmp_path / "taken")
    assert contents(tmp_path / "taken") == {"file": b"mine"}
    before = sorted(tmp_path.iterdir())

    def interrupted(sample):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "check_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(options(scene), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    (tmp_path / ".out.partial-999999999").mkdir()
    build(options(scene), tmp_path / "out")
    assert not (tmp_path / ".out.partial-999999999").exists()


def test_words_and_numbers_of_the_command_line():
    assert words_of(["80=water,50=building", "60=bare"]) == ("80=water", "50=building", "60=bare") and words_of(None) == ()
    assert number("1/255") == 1 / 255 and number("1e-4") == 1e-4 and codes_of(["3,8", "9"]) == (3, 8, 9)
    with pytest.raises(InvalidBuild):
        number("a tenth")
    with pytest.raises(InvalidBuild):
        codes_of(["cloud"])


def run(*words):
    with pytest.raises(SystemExit) as left:
        app(["spie", "build", *map(str, words)], prog_name="spexmap")
    return left.value.code


def test_the_command_writes_a_data_set_and_says_how_much(scene, tmp_path, capsys):
    words = (scene, "--out", tmp_path / "out", "--scale", "0.0001", "--chip", "64", "--stride", "48", "--classes", "water,vegetation")
    assert run(*words) == 0
    assert re.search(r"wrote \d+ samples of \d+ chips to ", capsys.readouterr().out)
    assert {row["class"] for row in rows_of(tmp_path / "out")} == {"water", "vegetation"}
    assert run(*words) == 2 and "not empty" in capsys.readouterr().err


def test_labelled_chips_of_the_shared_data_become_a_data_set(shared_data: Path, tmp_path):
    chips = shared_data / "chips" / "hls-worldcover" / "val.npz"
    if not chips.is_file():
        pytest.skip(f"no chips at {chips}")
    with np.load(chips) as data:
        few = {name: data[name][:6] for name in ("reflectance", "worldcover", "qa", "place", "chip_id")}
    np.savez(tmp_path / "few.npz", **few)
    chosen = BuildOptions(
        (str(tmp_path / "few.npz"),),
        ("coastal", "blue", "green", "red", "nir", "swir16", "swir22"),
        Calibration(1e-4),
        labels="worldcover",
        classes=("80=water", "50=building", "10=vegetation", "30=vegetation", "40=vegetation"),
        cutting=Cutting(128, 128),
        resolution=30.0,
        clouds="qa",
        cloud_bits=(1, 3),
    )
    build(chosen, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    clear = (few["qa"] & 0b1010) == 0
    for row in rows:
        number_of_chip = int(row["origin"].rpartition("#")[2])
        codes = {"water": [80], "building": [50], "vegetation": [10, 30, 40]}[row["class"]]
        truth = np.isin(few["worldcover"][number_of_chip], codes) & clear[number_of_chip]
        assert (mask_of_runs(row["mask_runs"], (128, 128)) == truth).all() and row["source"] == "index"
    of_place = {(int(few["place"][int(row["origin"].rpartition("#")[2])]), row["place"]) for row in rows}
    assert len(of_place) == len({place for place, _ in of_place}) == len({place for _, place in of_place})
