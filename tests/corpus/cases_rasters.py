"""Bad files: bands and masks of a scene."""

from __future__ import annotations

import numpy as np
from affine import Affine
from corpus import Case, Outcome
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.windows import Window
from rehearsal import Rehearsal
from spoiling import BEST, EDGE, OLDER, all_of, bands, content, gone, header, pixels, put, shifted

RIGHT, REFUSED, LEFT_OUT, FAILED = Outcome.RIGHT, Outcome.REFUSED, Outcome.LEFT_OUT, Outcome.FAILED
ALL = (BEST, OLDER, EDGE)
HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
VRT = b"""<VRTDataset rasterXSize="128" rasterYSize="128"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename relativeToVRT="1">B03.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbled(content: bytes) -> bytes:
    """Overwrite a stretch in the compressed pixels: the header stays sound."""
    middle = len(content) // 2
    return content[:middle] + bytes(range(256)) * 8 + content[middle + 2048 :]


def part(value: float, dtype: str = "uint16", rows: slice = slice(40, 90)):
    def change(numbers):
        changed = numbers.astype(dtype)
        changed[rows] = value
        return changed

    return change


def constant(value: int):
    return lambda numbers: np.full_like(numbers, value)


def reflectance(numbers):
    return (numbers / 10000).astype(np.float32)


def finer(factor: int):
    return lambda numbers: numbers.repeat(factor, 0).repeat(factor, 1)


def scaled(factor: float):
    return lambda transform: transform * Affine.scale(factor)


def status_is(value: int):
    return lambda found: all((block.status == value).all() and not block.numbers.any() for block in found.blocks.values())


def only_from(*names: str):
    """Every pixel comes from one of these scenes."""

    def check(found: Rehearsal) -> bool:
        assert found.plan is not None
        ranks = [0, *(rank for rank, scene in enumerate(found.plan.scenes, 1) if scene.id in names)]
        return all(np.isin(block.source, ranks).all() and block.numbers.any() for block in found.blocks.values())

    return check


def both(found: Rehearsal) -> bool:
    """Part of the map comes from the best scene, part from another one."""
    assert found.plan is not None
    best = next(rank for rank, scene in enumerate(found.plan.scenes, 1) if scene.id == BEST)
    return all((block.source == best).any() and (block.source != best).any() for block in found.blocks.values())


def south_up(transform: Affine) -> Affine:
    return transform * Affine.translation(0, 128) * Affine.scale(1, -1)


def east_up(transform: Affine) -> Affine:
    """The transform of numbers that were turned by a quarter, counter-clockwise."""
    return transform * Affine.translation(128, 0) * Affine.rotation(90)


def coloured(target, numbers):
    target.write(numbers, 1)
    target.write_colormap(1, {code: (20 * code, 0, 0, 255) for code in range(12)})


def masked(target, numbers):
    target.write(numbers, 1)
    target.write_mask(numbers != 0)


def one_block(target, numbers):
    target.write(numbers[:64, :64], 1, window=Window(0, 0, 64, 64))


def pinned(target, numbers):
    """Write ground control points in place of a transform."""
    target.write(numbers, 1)
    corners = [(0, 0, 731_480), (0, 128, 732_760), (128, 0, 731_480)]
    target.gcps = [GroundControlPoint(row, column, x, 5_093_500 - 10 * row) for row, column, x in corners], CRS.from_epsg(32632)


CASES = (
    Case("band-truncated", "a band's file ends in the middle", content("B04", half), LEFT_OUT, "B04.tif"),
    Case("band-header-only", "a band's file has 1,000 bytes left", content("B04", lambda data: data[:1000]), LEFT_OUT, "B04.tif"),
    Case("band-empty", "a band's file has no byte", content("B04", lambda data: b""), LEFT_OUT, "B04.tif"),
    Case("band-missing", "a band's file is not there", gone("B11"), LEFT_OUT, "B11.tif"),
    Case("band-html", "a sign-in page in place of a band", content("B03", lambda data: HTML), LEFT_OUT, "B03.tif"),
    Case("band-garbled", "2 KB of a band are overwritten", content("B08", garbled), LEFT_OUT, "B08.tif"),
    Case(
        "band-virtual",
        "a virtual raster, which could name any file or host, in place of a band",
        content("B04", lambda data: VRT),
        LEFT_OUT,
        "not recognized",
    ),
    Case("first-scene-empty", "the scene whose grid the map would take has empty files", content("B02", lambda d: b"", OLDER), RIGHT),
    Case(
        "blue-unreadable-everywhere",
        "no scene's blue band can be opened",
        content("B02", lambda d: b"", *ALL),
        Outcome.SENTENCE,
        "grid.origin",
    ),
    Case("mask-truncated", "the mask's file ends in the middle", content("SCL", half), LEFT_OUT, "SCL.tif"),
    Case("mask-missing", "the mask's file is not there", gone("SCL"), LEFT_OUT, "SCL.tif"),
    Case("every-scene-broken", "no scene has a mask that can be read", gone("SCL", *ALL), FAILED, "no scene could be read"),
    Case("crs-other-zone", "a band says that it lies in another UTM zone", header("B04", crs="EPSG:32615"), LEFT_OUT, "B04.tif"),
    Case("crs-none", "a band has no CRS", header("B04", crs=None), LEFT_OUT, "no coordinate reference system"),
    Case(
        "gcps-only",
        "a band has ground control points in place of a transform",
        pixels("B04", lambda n: n, crs=None, transform=None, write=pinned),
        LEFT_OUT,
        "no coordinate reference system",
    ),
    Case("upside-down", "a band is stored south up", pixels("B04", np.flipud, transform=south_up), RIGHT),
    Case("turned", "a band is stored east up, with a turned transform", pixels("B04", np.rot90, transform=east_up), RIGHT),
    Case("palette", "the mask is a palette picture", pixels("SCL", lambda n: n, photometric="palette", write=coloured), RIGHT),
    Case("internal-mask", "a band has an internal mask over its empty pixels", pixels("B04", part(0), write=masked), RIGHT, like=None, check=both),
    Case(
        "sparse",
        "three of a band's four blocks were never written",
        pixels("B04", lambda n: n, sparse_ok=True, write=one_block),
        RIGHT,
        like=None,
        check=both,
    ),
    Case("degenerate-transform", "a band's pixels have no size", header("B04", transform=Affine(0, 0, 731000, 0, 0, 5092000)), LEFT_OUT, "B04.tif"),
    Case("mask-far-away", "the mask lies 60 km away", header("SCL", transform=shifted(60_000)), LEFT_OUT, "SCL.tif"),
    Case("mask-shifted", "the mask lies 300 m beside its bands", header("SCL", transform=shifted(300)), LEFT_OUT, "SCL.tif"),
    Case("band-shifted", "a band lies 300 m beside the others", header("B04", transform=shifted(300)), LEFT_OUT, "B04.tif"),
    Case("mask-half-a-pixel-off", "the mask lies half a pixel beside its bands", header("SCL", transform=shifted(9)), RIGHT),
    Case("mask-no-data", "the mask has no data at all", pixels("SCL", constant(0)), RIGHT, like=(BEST,)),
    Case("mask-unknown-codes", "the mask has codes that do not exist", pixels("SCL", constant(77)), RIGHT, like=(BEST,)),
    Case("mask-all-cloud", "the scene is all cloud", pixels("SCL", constant(9)), RIGHT, like=(BEST,)),
    Case("mask-all-defective", "every pixel is marked saturated or defective", pixels("SCL", constant(1)), RIGHT, like=(BEST,)),
    Case("all-cloud-everywhere", "all scenes are all cloud", pixels("SCL", constant(9), *ALL), RIGHT, like=None, check=status_is(253)),
    Case("no-data-everywhere", "no scene has data", pixels("SCL", constant(0), *ALL), RIGHT, like=None, check=status_is(252)),
    Case("mask-float", "the mask is stored as float32", pixels("SCL", lambda n: n.astype(np.float32)), RIGHT),
    Case("mask-float-nan", "the mask is float32 and partly NaN", pixels("SCL", part(np.nan, "float32", slice(20, 40))), RIGHT, like=None, check=both),
    Case("mask-int16-negative", "the mask is int16 and has -1", pixels("SCL", part(-1, "int16", slice(20, 40))), RIGHT, like=None, check=both),
    Case("mask-finer", "the mask has pixels of 10 m", all_of(header("SCL", transform=scaled(0.5)), pixels("SCL", finer(2))), RIGHT),
    Case("bands-no-data", "the scene's bands have no data at all", bands(lambda file: pixels(file, constant(0))), RIGHT, like=(BEST,)),
    Case("band-no-data", "one band has no data at all", pixels("B11", constant(0)), RIGHT, like=(BEST,)),
    Case("band-half", "one band covers half of the scene", pixels("B04", lambda n: n[:64]), RIGHT, like=None, check=both),
    Case(
        "band-coarser",
        "a band has pixels of 20 m",
        all_of(header("B04", transform=scaled(2)), pixels("B04", lambda n: n[::2, ::2])),
        RIGHT,
        like=None,
        check=only_from(BEST),
    ),
    Case("band-nan", "a band is float32 and partly NaN", pixels("B04", part(np.nan, "float32")), RIGHT, like=None, check=both),
    Case("band-infinite", "a band is float32 and partly infinite", pixels("B04", part(np.inf, "float32")), RIGHT, like=None, check=both),
    Case("band-saturated", "a band is partly 65535", pixels("B04", part(65535)), RIGHT, like=None, check=only_from(BEST)),
    Case("band-negative", "a band is int16 and partly -50", pixels("B04", part(-50, "int16")), RIGHT, like=None, check=only_from(BEST)),
    Case(
        "band-other-fill",
        "a band says that -9999 is its no data, not 0",
        pixels("B04", part(-9999, "int16"), nodata=-9999),
        RIGHT,
        like=None,
        check=both,
    ),
    Case("band-uint8", "a band is stretched to uint8", pixels("B04", lambda n: (n // 40).astype(np.uint8)), LEFT_OUT, "uint8"),
    Case("band-reflectance", "a band holds reflectance 0..1 in place of integers", pixels("B04", reflectance, nodata=None), LEFT_OUT, "float32"),
    Case(
        "all-reflectance",
        "all bands hold reflectance 0..1 in place of integers",
        bands(lambda file: pixels(file, reflectance, nodata=None)),
        LEFT_OUT,
        "float32",
    ),
    Case("band-complex", "a band is complex", pixels("B04", lambda n: n.astype(np.complex64), nodata=None), LEFT_OUT, "complex"),
    Case("no-overviews", "bands have no overviews", bands(lambda file: pixels(file, lambda n: n)), RIGHT),
    Case("no-nodata-tag", "bands do not say what is no data", bands(lambda file: header(file, nodata=None)), RIGHT),
    Case(
        "wrong-scale-and-offset",
        "the item says scale 0.1 and offset 1000",
        put("assets.red.raster:bands", [{"scale": 0.1, "offset": 1000, "nodata": 7}]),
        RIGHT,
    ),
    Case("offset-flag-wrong", "the item says that the offset is still there", put("properties.earthsearch:boa_offset_applied", False), RIGHT),
    Case("offset-flag-not-boolean", "the offset's flag is a word", put("properties.earthsearch:boa_offset_applied", "maybe"), RIGHT),
    Case("baseline-nonsense", "the processing baseline is no number", put("properties.s2:processing_baseline", "latest"), RIGHT),
    Case(
        "old-and-empty",
        "two scenes are broken at once, each in its own way",
        all_of(content("B04", half), gone("SCL", OLDER)),
        LEFT_OUT,
        "B04.tif",
        like=(BEST, OLDER),
    ),
)
