"""Bad items: what a catalog says of a scene."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

from corpus import Case, Outcome
from rehearsal import Rehearsal
from spoiling import BEST, EDGE, OLDER, Spoil, World, all_of, drop, item, link, put

RIGHT, REFUSED, LEFT_OUT, SENTENCE = Outcome.RIGHT, Outcome.REFUSED, Outcome.LEFT_OUT, Outcome.SENTENCE
ALL = (BEST, OLDER, EDGE)
BOWTIE = {"type": "Polygon", "coordinates": [[[11.98, 45.94], [12.01, 45.96], [12.01, 45.94], [11.98, 45.96], [11.98, 45.94]]]}
SPIKY = {
    "type": "Polygon",
    "coordinates": [[[11.98, 45.94], [12.01, 45.94], [12.01, 45.96], [11.98, 45.96], [11.98, 45.94], [11.98, 46.5], [11.98, 45.94]]],
}
POINT = {"type": "Point", "coordinates": [11.99, 45.95]}
WORDS = {"type": "Polygon", "coordinates": [[["west", "south"], ["east", "south"], ["east", "north"], ["west", "south"]]]}
NOT_FINITE = {"type": "Polygon", "coordinates": [[[11.98, 45.94], [float("nan"), 45.94], [12.01, float("inf")], [11.98, 45.94]]]}
SWAPPED = {"type": "Polygon", "coordinates": [[[45.94, 11.98], [45.96, 11.98], [45.96, 12.01], [45.94, 12.01], [45.94, 11.98]]]}
LONG = "x" * 5000
NEWER = "S2A_32TQR_20210712_1_L2A_SIMULATED"


def copy(document_id: str, change: Callable[[dict[str, Any]], Any] = lambda document: None) -> Spoil:
    """Add another item of the best scene's acquisition."""

    def spoil(world: World) -> None:
        document = world.document()
        document["id"] = document_id
        change(document)
        folder = world.item(BEST).parent
        (folder / "other.json").write_text(json.dumps(document))
        link("item", f"./{BEST}/other.json")(world)

    return spoil


def elsewhere(world: World) -> None:
    """Move the best scene's files out of the catalog's folder and name them by ``..``."""
    outside = world.root / "files of, another kind" / "ä"
    shutil.copytree(world.item().parent, outside)
    for path in world.item().parent.glob("*.tif"):
        path.unlink()
    item(lambda d: [asset.update(href=f"../../{outside.relative_to(world.root)}/{asset['href'][2:]}") for asset in d["assets"].values()])(world)


def renamed(name: str) -> Spoil:
    return put("id", name)


def bands_are(*names: str) -> Callable[[Rehearsal], bool]:
    return lambda found: found.plan is not None and not set(names) & set(found.plan.bands)


def knows(name: str) -> Callable[[Rehearsal], bool]:
    return lambda found: found.plan is not None and name in found.plan.scene


def superseded(found: Rehearsal) -> bool:
    return found.plan is not None and sorted(found.plan.scene) == sorted((NEWER, OLDER, EDGE))


def one_of_each(found: Rehearsal) -> bool:
    return found.plan is not None and sorted(found.plan.scene) == sorted(ALL)


CASES = (
    Case("geometry-null", "an item has no geometry", put("geometry", None), REFUSED, "no footprint"),
    Case("geometry-missing", "an item does not have the key", drop("geometry"), REFUSED, "no footprint"),
    Case("geometry-point", "an item's geometry is a point", put("geometry", POINT), REFUSED, "no area"),
    Case("geometry-words", "coordinates are words", put("geometry", WORDS), REFUSED, "not a GeoJSON geometry"),
    Case("geometry-not-finite", "coordinates are NaN and infinite", put("geometry", NOT_FINITE), REFUSED, "footprint"),
    Case("geometry-text", "an item's geometry is WKT", put("geometry", "POLYGON ((11 45, 12 45, 12 46, 11 45))"), REFUSED, "not a GeoJSON geometry"),
    Case("geometry-bowtie", "an item's polygon crosses itself", put("geometry", BOWTIE), RIGHT),
    Case("geometry-spike", "an item's polygon has a spike", put("geometry", SPIKY), RIGHT),
    Case("geometry-swapped", "latitude comes before longitude", put("geometry", SWAPPED), RIGHT, like=(BEST,)),
    Case("bbox-inverted", "an item's bbox is north before south", put("bbox", [12.1, 46.0, 11.9, 45.9]), RIGHT),
    Case("bbox-null", "an item's bbox is null", put("bbox", None), RIGHT),
    Case("bbox-words", "an item's bbox is words", put("bbox", "everywhere"), RIGHT),
    Case("datetime-null", "datetime is null and nothing else tells the time", put("properties.datetime", None), REFUSED, "datetime is null"),
    Case("datetime-words", "datetime is a word", put("properties.datetime", "yesterday"), REFUSED, "is not a time"),
    Case("datetime-number", "datetime is a number", put("properties.datetime", 1626084632), REFUSED, "is not a time"),
    Case("datetime-year-0", "datetime lies before the calendar", put("properties.datetime", "0000-00-00T00:00:00Z"), REFUSED, "is not a time"),
    Case("datetime-without-zone", "datetime has no zone", put("properties.datetime", "2021-07-12T10:10:32"), RIGHT),
    Case(
        "datetime-span",
        "datetime is null, start and end are given",
        item(lambda d: d["properties"].update(datetime=None, start_datetime="2021-07-12T10:10:32Z", end_datetime="2021-07-12T10:10:40Z")),
        RIGHT,
    ),
    Case(
        "datetime-span-reversed",
        "the acquisition ends before it begins",
        item(lambda d: d["properties"].update(datetime=None, start_datetime="2021-07-12T10:10:32Z", end_datetime="2021-06-01T00:00:00Z")),
        REFUSED,
        "ends before it begins",
    ),
    Case("id-path", "an id is ../../x", renamed("../../x"), REFUSED, "act as a path", scene="../../x"),
    Case("id-absolute", "an id is a path", renamed("/etc/passwd"), REFUSED, "act as a path", scene="/etc/passwd"),
    Case("id-newline", "an id has a line break", renamed("a\nb"), REFUSED, "act as a path", scene="a\\nb"),
    Case("id-long", "an id has 5,000 characters", renamed(LONG), REFUSED, "longer than 200", scene=LONG[:200]),
    Case("id-number", "an id is a number", put("id", 7), REFUSED, "no id", scene="(no id)"),
    Case("id-missing", "an item has no id", drop("id"), REFUSED, "no id", scene="(no id)"),
    Case("id-surrogate", "an id is half a character", put("id", "S2A_\ud800"), REFUSED, "not text", scene="S2A_\\ud800"),
    Case("id-unicode", "an id has umlauts and Chinese", renamed("S2A_32TQR_äöü_漢字"), RIGHT, check=knows("S2A_32TQR_äöü_漢字")),
    Case("asset-missing", "a required band has no asset", drop("assets.red"), REFUSED, "lacks band red"),
    Case(
        "asset-optional-missing",
        "a band that the model can do without is missing",
        drop("assets.rededge1"),
        RIGHT,
        like=None,
        check=bands_are("rededge071"),
    ),
    Case("asset-mask-missing", "there is no asset of the mask", drop("assets.scl"), REFUSED, "no scene classification"),
    Case("assets-all-missing", "an item has no assets", put("assets", {}), REFUSED, "none of its assets"),
    Case("assets-null", "assets is null", put("assets", None), REFUSED, "not a STAC item"),
    Case("assets-list", "assets is a list", put("assets", [1, 2]), REFUSED, "not a STAC item"),
    Case("asset-without-href", "an asset has no href", drop("assets.red.href"), REFUSED, "href"),
    Case("asset-href-null", "an asset's href is null", put("assets.red.href", None), REFUSED, "href"),
    Case("asset-href-empty", "an asset's href is empty", put("assets.red.href", ""), REFUSED, "href"),
    Case("asset-href-list", "an asset's href is a list", put("assets.red.href", ["B04.tif"]), REFUSED, "href"),
    Case("asset-href-nul", "an asset's href has a NUL character", put("assets.red.href", "B04\0.tif"), REFUSED, "href"),
    Case("href-dots", "hrefs climb out of the catalog by .., with spaces and umlauts", elsewhere, RIGHT),
    Case("href-passwd", "an asset is file:///etc/passwd", put("assets.red.href", "file:///etc/passwd"), LEFT_OUT, "not recognized"),
    Case("href-directory", "an asset's href is a folder", put("assets.red.href", "."), LEFT_OUT, BEST),
    Case("href-ftp", "an asset lies on ftp", put("assets.red.href", "ftp://example.com/B04.tif"), REFUSED, "ftp://"),
    Case(
        "href-password",
        "an href carries a password",
        put("assets.red.href", "https://u:secret@example.com/B04.tif"),
        REFUSED,
        "user name or password",
    ),
    Case(
        "href-signed",
        "an href carries a signature that would expire",
        put("assets.red.href", "https://example.com/B04.tif?X-Amz-Signature=abc"),
        REFUSED,
        "are signed",
    ),
    Case("href-vsi", "an href is a path of GDAL's own", put("assets.red.href", "/vsicurl/http://127.0.0.1:9/B04.tif"), REFUSED, "/vsi"),
    Case("href-broken-url", "an href is a URL that is none", put("assets.red.href", "http://[::1/B04.tif"), REFUSED, "href"),
    Case(
        "bands-swapped",
        "the asset of red says that it is near infrared",
        item(lambda d: d["assets"]["red"].update({"eo:bands": d["assets"]["nir"]["eo:bands"]})),
        REFUSED,
        "says that it is nir",
    ),
    Case("eo-bands-without-names", "eo:bands names nothing", put("assets.red.eo:bands", [{}]), RIGHT),
    Case("eo-bands-text", "eo:bands is a word", put("assets.red.eo:bands", "red"), RIGHT),
    Case("eo-bands-number", "eo:bands is a number", put("assets.red.eo:bands", 4), RIGHT),
    Case("eo-bands-numbers", "eo:bands has numbers for names", put("assets.red.eo:bands", [{"common_name": 4}]), RIGHT),
    Case(
        "proj-null", "proj:epsg is null, proj:shape a word", item(lambda d: d["properties"].update({"proj:epsg": None, "proj:shape": "big"})), RIGHT
    ),
    Case("cloud-cover-text", "eo:cloud_cover is text", put("properties.eo:cloud_cover", "12"), RIGHT, like=None),
    Case("cloud-cover-nan", "eo:cloud_cover is NaN", put("properties.eo:cloud_cover", float("nan")), RIGHT, like=None, check=one_of_each),
    Case("cloud-cover-1000", "eo:cloud_cover is 1000", put("properties.eo:cloud_cover", 1000), RIGHT, like=None, check=one_of_each),
    Case("cloud-cover-boolean", "eo:cloud_cover is true", put("properties.eo:cloud_cover", True), RIGHT, like=None, check=one_of_each),
    Case("properties-null", "properties is null", put("properties", None), REFUSED, "no properties"),
    Case("properties-list", "properties is a list", put("properties", []), REFUSED, "no properties"),
    Case("links-null", "links is null", put("links", None), RIGHT),
    Case("links-words", "links are words", put("links", ["self", None, 3]), RIGHT),
    Case("version-missing", "stac_version is missing", drop("stac_version"), RIGHT),
    Case("version-number", "stac_version is a number", put("stac_version", 1.0), RIGHT),
    Case("version-9", "stac_version is 9.9.9", put("stac_version", "9.9.9"), RIGHT),
    Case("extensions-null", "stac_extensions is null", put("stac_extensions", None), RIGHT),
    Case("type-missing", "an item does not say that it is a Feature", drop("type"), RIGHT),
    Case("title-number", "text properties are numbers and lists", item(lambda d: d["properties"].update(title=5, platform=["x"], created={})), RIGHT),
    Case(
        "platform-infinite",
        "text properties are numbers that JSON has not",
        item(lambda d: d["properties"].update(platform=float("inf"), instruments=[float("nan")], gsd="ten", license=0)),
        RIGHT,
    ),
    Case("level-1c", "an item is Level-1C", put("properties.s2:product_type", "S2MSI1C"), REFUSED, "Level-1C"),
    Case(
        "other-sensor",
        "an item is radar",
        item(lambda d: d.update(assets={"vv": {"href": "./vv.tif"}})),
        REFUSED,
        "none of its assets is a Sentinel-2",
    ),
    Case("duplicate-links", "the collection links to an item twice", link("item", f"./{BEST}/../{BEST}/{BEST}.json"), RIGHT, check=one_of_each),
    Case("duplicate-items", "an item is there twice, in two documents", copy(BEST), RIGHT, check=one_of_each),
    Case(
        "reprocessed",
        "an acquisition was processed again and both items are there",
        copy(NEWER, lambda d: d["properties"].update({"s2:processing_baseline": "05.10"})),
        RIGHT,
        check=superseded,
    ),
    Case(
        "newest-processing-unusable",
        "the newest processing of an acquisition lacks its mask",
        copy(NEWER, lambda d: (d["properties"].update({"s2:processing_baseline": "05.10"}), d["assets"].pop("scl"))),
        REFUSED,
        "no scene classification",
        scene=NEWER,
        like=(),
    ),
    Case(
        "same-id-other-acquisition",
        "two acquisitions have one id",
        copy(OLDER, lambda d: d["properties"].update(datetime="2021-07-01T10:10:31Z")),
        REFUSED,
        "another scene of this search has its id",
        scene=OLDER,
        like=(),
    ),
    Case("every-item-refused", "no item has a footprint", put("geometry", None, *ALL), SENTENCE, "3 were refused", exit_status=0),
    Case(
        "every-item-lacks-red",
        "no item has the red band",
        all_of(*(drop("assets.red", name) for name in ALL)),
        SENTENCE,
        "lacks band red",
    ),
)
