"""Bad job files, regions and grids."""

from __future__ import annotations

from typing import Any

import numpy as np
from corpus import Case, Outcome
from rehearsal import Rehearsal
from shapely.geometry import LineString, MultiPoint, Point, Polygon, box
from spoiling import Spoil, all_of, box_in, feature, job, job_line, moved, raw_job, region

RIGHT, SENTENCE = Outcome.RIGHT, Outcome.SENTENCE
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LOOP = "name: corpus\nregion: &r [*r]\n"
PLACE = box(11.989, 45.946, 11.9995, 45.9545)
ANTIMERIDIAN = ("EPSG:32601", 299_000.0, 6_900_000.0)
POLE = ("EPSG:3413", -640.0, 640.0)


def classes(*codes: Any) -> Spoil:
    names = ("vegetation", "building", "water", "bare")
    return job(classes=[{"name": name, "code": code} for name, code in zip(names, codes, strict=False)])


def filled(found: Rehearsal) -> bool:
    """Every pixel of the map has data."""
    return all(block.numbers.all() for block in found.blocks.values())


def one_pixel(found: Rehearsal) -> bool:
    (block,) = found.blocks.values()
    return block.numbers.shape[1:] == (1, 1) and bool(block.numbers.all())


def some_data(found: Rehearsal) -> bool:
    return any(np.any(block.numbers) for block in found.blocks.values())


CASES = (
    Case("job-empty", "the job file has no byte", raw_job(""), SENTENCE, "is empty"),
    Case("job-tabs", "the job file is indented by tabs", raw_job("name: a\nsource:\n\tcatalog: c.json\n"), SENTENCE, "line 3"),
    Case("job-duplicate-key", "a key is there twice", job_line("name: again"), SENTENCE, "twice"),
    Case("job-unknown-key", "a key is unknown", job_line("surce: {}"), SENTENCE, "did you mean source"),
    Case("job-bomb", "YAML anchors that unfold to a billion words", raw_job(BOMB), SENTENCE, "job.yaml"),
    Case("job-anchor-loop", "a YAML anchor that holds itself", raw_job(LOOP), SENTENCE, "job.yaml"),
    Case("job-tag", "a YAML tag that would run a program", raw_job("!!python/object/apply:os.system [ls]"), SENTENCE, "not YAML"),
    Case("job-deep", "lists nested 5,000 deep", raw_job("[" * 5000), SENTENCE, "not YAML"),
    Case("job-list", "the job file is a list", raw_job("- a\n- b\n"), SENTENCE, "this is a list"),
    Case("job-two-documents", "two YAML documents in one file", raw_job("name: a\n---\nname: b\n"), SENTENCE, "line 2"),
    Case("job-binary", "the job file is a picture", raw_job(b"\x89PNG\r\n\x1a\n" + bytes(100)), SENTENCE, "not UTF-8"),
    Case("job-nul", "the job file has NUL characters", raw_job("name: a\0b\n"), SENTENCE, "not YAML"),
    Case("job-utf-16", "the job file is UTF-16", raw_job("name: a\n".encode("utf-16")), SENTENCE, "not UTF-8"),
    Case("job-large", "the job file has 2 MB", raw_job("#" * 2_000_000), SENTENCE, "larger than"),
    Case("job-bom", "the job file begins with a byte order mark", raw_job("\ufeffname: [a]\n"), SENTENCE, "name"),
    Case("job-surrogate", "a value has half a character", raw_job('name: a\nregion: "\\uD800"\n'), SENTENCE, "not text"),
    Case("job-key-list", "a key is a list", raw_job("? [a, b]\n: c\n"), SENTENCE, "job.yaml"),
    Case("job-key-number", "a key is a number", job_line("5: c"), SENTENCE, "a key must be a word"),
    Case("job-key-null", "a key is null", job_line("~: c"), SENTENCE, "a key must be a word"),
    Case("name-path", "the name is ../x", job(name="../x"), SENTENCE, "lower case"),
    Case("name-long", "the name has 5,000 characters", job(name="x" * 5000), SENTENCE, "name"),
    Case("resolution-zero", "the resolution is 0", job(grid__resolution=0), SENTENCE, "grid.resolution"),
    Case("resolution-negative", "the resolution is negative", job(grid__resolution=-10), SENTENCE, "grid.resolution"),
    Case("resolution-nan", "the resolution is NaN", job(grid__resolution=float("nan")), SENTENCE, "grid.resolution"),
    Case("resolution-huge", "the resolution is 1e300", job(grid__resolution=1e300), SENTENCE, "grid.resolution"),
    Case("resolution-tiny", "the resolution is 1e-300", job(grid__resolution=1e-300), SENTENCE, "grid"),
    Case("resolution-digits", "the resolution has 400 digits", job(grid__resolution=10**400), SENTENCE, "grid.resolution"),
    Case("resolution-degrees", "10 degrees a pixel", job(grid__crs="EPSG:4326"), SENTENCE, "counts in degrees"),
    Case("tile-zero", "tiles have no pixels", job(grid__tile=0), SENTENCE, "grid.tile"),
    Case("tile-fraction", "tiles have half a pixel", job(grid__tile=0.5), SENTENCE, "grid.tile"),
    Case("tile-one", "tiles of one pixel for a large region", job(grid__tile=1, region=[11.0, 45.0, 12.0, 46.0]), SENTENCE, "grid.tile"),
    Case("origin-nan", "the origin is NaN", job(grid__origin=[float("nan"), 0]), SENTENCE, "grid.origin"),
    Case("origin-digits", "the origin has 400 digits", job(grid__origin=[10**400, 0]), SENTENCE, "grid.origin"),
    Case("origin-far", "the origin is 1e300", job(grid__origin=[1e300, 1e300]), SENTENCE, "grid.origin"),
    Case("crs-nonsense", "the CRS does not exist", job(grid__crs="EPSG:99999"), SENTENCE, "grid.crs"),
    Case("crs-other-place", "the CRS is made for New Zealand", job(grid__crs="EPSG:2193"), SENTENCE, "grid.crs"),
    Case("crs-three-axes", "the CRS is geocentric", job(grid__crs="EPSG:4978"), SENTENCE, "two plane axes"),
    Case("crs-vertical", "the CRS is a height", job(grid__crs="EPSG:5773"), SENTENCE, "two plane axes"),
    Case("class-code-255", "a class has code 255", classes(1, 255), SENTENCE, "250"),
    Case("class-code-twice", "two classes have one code", classes(1, 1), SENTENCE, "code 1 is there twice"),
    Case("class-code-zero", "a class has code 0", classes(0), SENTENCE, "classes"),
    Case("classes-empty", "there are no classes", job(classes=[]), SENTENCE, "at least one class"),
    Case("classes-251", "there are 251 classes", job(classes=[f"c{n}" for n in range(251)]), SENTENCE, "classes"),
    Case("class-unknown", "the model does not know a class", job(classes=["watr"]), SENTENCE, "water"),
    Case("class-other", "a class is called other", job(classes=["other"]), SENTENCE, "what pixels without a class are called"),
    Case("period-reversed", "the period ends before it begins", job(period="2021-07-12/2021-06-12"), SENTENCE, "ends before it begins"),
    Case("period-no-day", "the period has a 30 February", job(period="2021-02-30"), SENTENCE, "there is no day"),
    Case("period-number", "the period is a number", job(period=2021), SENTENCE, "period"),
    Case("period-future", "the period lies in the future", job(period="2199-01-01/2199-12-31"), SENTENCE, "no scene", exit_status=0),
    Case("period-year-0", "the period is the year 0", job(period="0000-01-01/0000-12-31"), SENTENCE, "period"),
    Case("job-cloud-cover-text", "the cloud cover is 80%", job(source__max_cloud_cover="80%"), SENTENCE, "source.max_cloud_cover"),
    Case("header-unset", "a header names a variable that is not set", job(source__headers={"A": "${SPEXMAP_NOT_SET}"}), SENTENCE, "SPEXMAP_NOT_SET"),
    Case("model-missing", "there is no such model", job(model="models/none"), SENTENCE, "model"),
    Case("composite-unknown", "the composite does not exist", job(composite="mean"), SENTENCE, "composite"),
    Case("region-three-numbers", "the region has three numbers", job(region=[1, 2, 3]), SENTENCE, "region"),
    Case("region-digits", "the region has a number of 400 digits", job(region=[10**400, 0, 1, 1]), SENTENCE, "region"),
    Case("region-upside-down", "south lies above north", job(region=[11.9, 46.0, 12.0, 45.9]), SENTENCE, "empty"),
    Case("region-missing", "there is no region file", job(region="nowhere.geojson"), SENTENCE, "there is no file"),
    Case("region-empty-file", "the region file has no byte", region(""), SENTENCE, "cannot be read"),
    Case("region-html", "a sign-in page in place of the region", region("<!DOCTYPE html><html></html>"), SENTENCE, "cannot be read"),
    Case("region-no-features", "the region file has no feature", region({"type": "FeatureCollection", "features": []}), SENTENCE, "is empty"),
    Case("region-null", "the region's geometry is null", region(feature(None)), SENTENCE, "is empty"),
    Case("region-points", "the region is points", region(feature(MultiPoint([(11.99, 45.95), (11.991, 45.95)]))), SENTENCE, "no polygon"),
    Case("region-line", "the region is a line", region(feature(LineString([(11.99, 45.95), (11.995, 45.951)]))), SENTENCE, "no polygon"),
    Case(
        "region-metres", "the region is in metres and says degrees", region(feature(box(731000, 5090000, 732000, 5091000))), SENTENCE, "not on Earth"
    ),
    Case(
        "region-bowtie",
        "the region's polygon crosses itself",
        region(feature(Polygon([(11.99, 45.946), (11.999, 45.954), (11.999, 45.946), (11.99, 45.954)]))),
        RIGHT,
        like=None,
        check=some_data,
    ),
    Case(
        "region-flat",
        "the region's polygon has no area",
        region(feature(Polygon([(11.99, 45.95), (11.995, 45.95), (11.99, 45.95)]))),
        SENTENCE,
        "region",
    ),
    Case(
        "region-not-finite",
        "the region's coordinates are NaN",
        region('{"type": "Polygon", "coordinates": [[[NaN, 1], [2, NaN], [3, 3], [NaN, 1]]]}'),
        SENTENCE,
        "region",
    ),
    Case("region-world", "the region is the world", job(region=[-180, -90, 180, 90], grid={}), SENTENCE, "grid.crs"),
    Case(
        "region-pole",
        "the region is a pole and the CRS auto",
        all_of(moved(*POLE), job(region=[-180, 89.997, 180, 90], grid={})),
        SENTENCE,
        "EPSG:3413",
    ),
    Case("region-elsewhere", "the region lies where no scene is", job(region=[11.0, 45.0, 11.01, 45.01]), SENTENCE, "no scene", exit_status=0),
    Case(
        "region-of-one-pixel",
        "the region is smaller than a pixel and holds its centre",
        region(feature(Point(11.9941, 45.9501).buffer(5e-5))),
        RIGHT,
        like=None,
        check=some_data,
    ),
    Case(
        "region-between-pixels",
        "the region is smaller than a pixel and holds no centre",
        job(region=[11.99400, 45.95000, 11.99401, 45.95001], grid={"crs": "EPSG:32632", "origin": [731_000, 5_092_000], "resolution": 200}),
        SENTENCE,
        "no pixel",
    ),
    Case(
        "antimeridian",
        "scenes and region cross the antimeridian",
        all_of(moved(*ANTIMERIDIAN), job(region=box_in(*ANTIMERIDIAN), grid={"crs": "auto"})),
        RIGHT,
        like=None,
        check=filled,
    ),
    Case(
        "pole",
        "scenes and region lie around the pole",
        all_of(moved(*POLE), job(region=[-180, 89.997, 180, 90], grid={"crs": "EPSG:3413"})),
        RIGHT,
        like=None,
        check=filled,
    ),
)
