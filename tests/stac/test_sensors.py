"""Numbers: if these fail, reflectance is off by a tenth, clouds are mapped as land, or an item is read that nobody can calibrate."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from stac.errors import SceneRefused
from stac.items import item_id, read_item
from stac.scenes import CLEAR, CLOUD, DEFECTIVE, UNOBSERVED, BandSource, Scene
from stac.sensors import profile_of, to_scene

EXPECTATIONS = list(csv.DictReader((Path(__file__).parent / "expectations.csv").open()))
"""Drawn up from the documents' file names, baselines and flags by the sensors' handbooks, not from this code's answers."""


def document(folder: Path, row: dict[str, str]) -> dict[str, Any]:
    whole = json.loads((folder / row["file"]).read_text())
    return whole if not row["index"] else (whole if isinstance(whole, list) else whole["features"])[int(row["index"])]


@pytest.mark.parametrize("row", EXPECTATIONS, ids=lambda row: f"{row['file'].split('/')[0]}-{row['id']}")
def test_every_real_item_becomes_a_scene_with_the_right_numbers_or_is_refused_with_a_reason(row: dict[str, str], stac_items: Path) -> None:
    place = str(stac_items / row["file"])
    if row["outcome"] == "refused":
        with pytest.raises(SceneRefused, match=row["reason"]):
            to_scene(read_item(document(stac_items, row), place))
        return
    scene = to_scene(read_item(document(stac_items, row), place))
    assert (scene.id, scene.sensor, " ".join(scene.bands)) == (row["id"], row["sensor"], row["bands"])
    for band in scene.bands.values():
        assert (band.scale, band.offset, band.nodata, band.index) == (float(row["scale"]), float(row["offset"]), float(row["nodata"]), 1)
    nir = scene.bands["nir" if "nir" in scene.bands else "nir08"]
    assert PurePosixPath(scene.bands["blue"].href).name == row["blue"]
    assert PurePosixPath(nir.href).name == row["nir"]
    assert scene.mask is not None
    assert PurePosixPath(scene.mask.href).name == row["mask"]
    assert all(part in scene.calibration for part in row["reason"].split("|"))


def test_the_table_has_every_item_of_the_folder(stac_items: Path) -> None:
    listed = {(row["file"], row["index"]) for row in EXPECTATIONS}
    for path in stac_items.rglob("*"):
        if path.suffix in ("", ".json") and path.is_file() and path.name != "LICENSE":
            whole = json.loads(path.read_text())
            many = isinstance(whole, list) or whole.get("type") == "FeatureCollection"
            members = (whole if isinstance(whole, list) else whole["features"]) if many else [whole]
            for index, member in enumerate(members):
                if "assets" in member and "geometry" in member and "links" in member:
                    assert (str(path.relative_to(stac_items)), str(index) if many else "") in listed


def test_scenes_of_real_items_survive_the_plan(stac_items: Path) -> None:
    for row in EXPECTATIONS:
        if row["outcome"] == "scene":
            scene = to_scene(read_item(document(stac_items, row), str(stac_items / row["file"])))
            assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


# ---------------------------------------------------------------------------------------------------------------- Sentinel-2's offset


@pytest.fixture(scope="session")
def flagged_false(stac_items: Path) -> dict[str, Any]:
    """Baseline 04.00 with boa_offset_applied false."""
    return json.loads((stac_items / "mapchete_eo" / "stac_items" / "S2B_33TWN_20220226_0_L2A").read_text())


@pytest.fixture(scope="session")
def flagged_true(stac_items: Path) -> dict[str, Any]:
    """Baseline 04.00 with boa_offset_applied true."""
    return json.loads((stac_items / "mapchete_eo" / "stac_items" / "S2B_33TWN_20220130_0_L2A").read_text())


def blue_numbers(dark: int, bright: int) -> np.ndarray:
    """`dark` numbers of water as they are without the offset, `bright` ones that say nothing, and no data."""
    return np.array([400] * dark + [1500] * bright + [0] * 500, np.uint16)


def scene_of(item: dict[str, Any], numbers: np.ndarray | None) -> Scene:
    return to_scene(read_item(item, "https://example.org/items.json"), lambda band, wanted: numbers)


def test_pixels_outweigh_a_flag_that_says_the_offset_was_not_applied(flagged_false: dict[str, Any]) -> None:
    scene = scene_of(flagged_false, blue_numbers(11, 989))
    assert scene.bands["blue"].offset == 0
    assert "1.1% of 1000 valid blue numbers lie below 900" in scene.calibration


def test_one_percent_of_dark_pixels_is_not_enough(flagged_false: dict[str, Any]) -> None:
    scene = scene_of(flagged_false, blue_numbers(10, 990))
    assert scene.bands["blue"].offset == -0.1
    assert "boa_offset_applied is false" in scene.calibration
    assert "1.0% of 1000" in scene.calibration


def test_the_flag_decides_where_pixels_do_not(flagged_true: dict[str, Any]) -> None:
    assert scene_of(flagged_true, blue_numbers(0, 1000)).bands["blue"].offset == 0


def test_the_baseline_decides_where_neither_pixels_nor_flag_do(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    del item["properties"]["earthsearch:boa_offset_applied"]
    scene = scene_of(item, blue_numbers(50, 0))
    assert {band.offset for band in scene.bands.values()} == {-0.1}
    assert "no flag" in scene.calibration


def test_a_baseline_alone_decides_nothing_while_the_pixels_that_could_cannot_be_read(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    del item["properties"]["earthsearch:boa_offset_applied"]
    with pytest.raises(SceneRefused, match="could not be read now; only they could tell"):
        scene_of(item, None)


def test_an_almost_empty_sample_decides_nothing(flagged_false: dict[str, Any]) -> None:
    scene = scene_of(flagged_false, blue_numbers(50, 0))
    assert scene.bands["blue"].offset == -0.1
    assert "only 50 valid pixels" in scene.calibration


def test_pixels_of_old_baselines_are_not_even_read(stac_items: Path) -> None:
    item = json.loads((stac_items / "mapchete_eo" / "stac_items" / "S2A_33TWN_20210629_0_L2A").read_text())

    def read(band: BandSource, wanted: int) -> None:
        raise AssertionError("reads cost a request for each scene")

    assert to_scene(read_item(item, "https://example.org/i.json"), read).bands["blue"].offset == 0


def test_an_item_whose_numbers_nobody_can_explain_is_refused(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    kept = {"datetime", "platform", "constellation"}
    item["properties"] = {key: value for key, value in item["properties"].items() if key in kept}
    with pytest.raises(SceneRefused, match="baseline is not stated"):
        scene_of(item, blue_numbers(0, 1000))
    assert scene_of(item, blue_numbers(500, 500)).bands["blue"].offset == 0


def test_a_missing_cloud_mask_is_a_reason_to_refuse(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    del item["assets"]["scl"]
    with pytest.raises(SceneRefused, match="clouds"):
        scene_of(item, None)


def test_jp2_twins_are_never_read(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    for name in ("red", "swir16"):
        del item["assets"][name]
    scene = scene_of(item, None)
    assert "red" not in scene.bands
    assert not any(band.href.endswith(".jp2") for band in scene.bands.values())


def test_a_scene_keeps_the_bands_that_it_has(flagged_true: dict[str, Any]) -> None:
    item = copy.deepcopy(flagged_true)
    item["assets"] = {key: item["assets"][key] for key in ("blue", "nir", "scl")}
    assert list(scene_of(item, None).bands) == ["blue", "nir"]


# ---------------------------------------------------------------------------------------------------------------- masks


def mask_of(stac_items: Path, file: str, index: int | None = None) -> Any:
    whole = json.loads((stac_items / file).read_text())
    item = whole if index is None else (whole if isinstance(whole, list) else whole["features"])[index]
    return to_scene(read_item(item, file)).mask


def test_scl_says_what_is_clear(stac_items: Path) -> None:
    seen = mask_of(stac_items, "mapchete_eo/stac_items/S2A_33TWN_20210629_0_L2A").observe(np.arange(12))
    expected = [UNOBSERVED, DEFECTIVE, CLEAR, CLOUD, CLEAR, CLEAR, CLEAR, CLEAR, CLOUD, CLOUD, CLOUD, CLEAR]
    assert seen.tolist() == expected


def test_qa_pixel_says_what_is_clear(stac_items: Path) -> None:
    mask = mask_of(stac_items, "stackstac/stackstac/tests/items-landsat-c2-l2.json", 0)
    # Clear, water, snow; then fill, dilated cloud, cirrus, cloud, shadow, as USGS lists them for Landsat 8 and 9.
    seen = mask.observe(np.array([21824, 21952, 30048, 1, 21826, 54596, 22280, 23888], np.uint16))
    assert seen.tolist() == [CLEAR, CLEAR, CLEAR, UNOBSERVED, CLOUD, CLOUD, CLOUD, CLOUD]


def test_fmask_says_what_is_clear(stac_items: Path) -> None:
    mask = mask_of(stac_items, "pystac_client/tests/data/sample-item-collection.json", 0)
    seen = mask.observe(np.array([0, 64, 32, 16, 2, 4, 8, 255], np.uint8))
    assert seen.tolist() == [CLEAR, CLEAR, CLEAR, CLEAR, CLOUD, CLOUD, CLOUD, UNOBSERVED]


# ---------------------------------------------------------------------------------------------------------------- other publishers


def small_item(name: str, collection: str, assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    ring = [[15, 47], [16, 47], [16, 48], [15, 48], [15, 47]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [15, 47, 16, 48],
        "properties": {"datetime": "2023-07-01T10:00:00Z", **properties},
        "links": [],
        "assets": {key: {"href": f"https://example.org/{key}.tif", **value} for key, value in assets.items()},
    }


def test_hls_s30_has_the_red_edge_and_no_top_of_atmosphere_bands() -> None:
    keys = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12", "Fmask", "SZA"]
    item = small_item("HLS.S30.T33TWN.2023182T100000.v2.0", "hls2-s30", {key: {} for key in keys}, platform="sentinel-2a")
    scene = to_scene(read_item(item, "i.json"))
    files = {name: PurePosixPath(band.href).stem for name, band in scene.bands.items()}
    assert scene.sensor == "hls"
    assert files == {
        "coastal": "B01",
        "blue": "B02",
        "green": "B03",
        "red": "B04",
        "rededge071": "B05",
        "rededge075": "B06",
        "rededge078": "B07",
        "nir": "B08",
        "nir08": "B8A",
        "swir16": "B11",
        "swir22": "B12",
    }


def test_naip_is_four_bands_of_one_file_and_says_that_it_is_uncalibrated() -> None:
    order = [{"name": "NIR", "eo:common_name": "nir"}, *({"eo:common_name": name} for name in ("red", "green", "blue"))]
    item = small_item("m_4709963_se_14_1_20170827", "naip", {"image": {"bands": order}, "thumbnail": {}}, gsd=1)
    scene = to_scene(read_item(item, "i.json"))
    assert {name: band.index for name, band in scene.bands.items()} == {"blue": 4, "green": 3, "red": 2, "nir": 1}
    assert scene.bands["red"].scale == pytest.approx(1 / 255)
    assert scene.mask is None
    assert "uncalibrated" in scene.calibration


def test_copernicus_names_its_assets_by_band_and_resolution() -> None:
    keys = ["B02_10m", "B02_20m", "B02_60m", "B8A_20m", "B8A_60m", "SCL_20m", "SCL_60m", "TCI_10m"]
    name = "S2A_MSIL2A_20210701T100031_N0301_R122_T33TWN_20210701T130000"
    scene = to_scene(read_item(small_item(name, "sentinel-2-l2a", {key: {} for key in keys}), "i.json"))
    assert PurePosixPath(scene.bands["blue"].href).stem == "B02_10m"
    assert PurePosixPath(scene.bands["nir08"].href).stem == "B8A_20m"
    assert scene.mask is not None
    assert scene.mask.href.endswith("SCL_20m.tif")
    assert scene.bands["blue"].offset == 0


@pytest.mark.parametrize(
    ("name", "blue", "nir"), [("LE07", "SR_B1", "SR_B4"), ("LT05", "SR_B1", "SR_B4"), ("LC08", "SR_B2", "SR_B5"), ("LC09", "SR_B2", "SR_B5")]
)
def test_band_numbers_of_landsat_mean_what_they_do_on_that_satellite(name: str, blue: str, nir: str) -> None:
    keys = [f"SR_B{number}" for number in range(1, 8)]
    item = small_item(f"{name}_L2SP_190027_20110701_20200820_02_T1", "landsat-c2l2-sr", {key: {} for key in [*keys, "ST_B6", "QA_PIXEL"]})
    bands = to_scene(read_item(item, "i.json")).bands
    assert (PurePosixPath(bands["blue"].href).stem, PurePosixPath(bands["nir08"].href).stem) == (blue, nir)
    assert ("coastal" in bands) == name.startswith("LC")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (small_item("S1A_IW_GRDH_1SDV_20230701", "sentinel-1-grd", {"vv": {}}, platform="sentinel-1a"), "radar"),
        (small_item("Copernicus_DSM_COG_10_N47", "cop-dem-glo-30", {"data": {}}, platform="tandem-x"), "elevation"),
        (
            small_item("LC08_L2SP_190027_20230701_02_T1_ST", "landsat-c2l2-st", {"lwir11": {}, "qa_pixel": {}}, platform="LANDSAT_8"),
            "no surface reflectance",
        ),
        (small_item("LC08_L2SP_190027_20200701_20200708_01_T1", "landsat", {"blue": {}, "qa_pixel": {}}, platform="landsat-8"), "Collection 2"),
        (small_item("S2_mosaic", "sentinel-2-mosaic", {"visual": {}, "blue": {}}, constellation="sentinel-2"), "clouds"),
        (small_item("odd", "sentinel-2-l2a", {"visual": {}}), "none of its assets"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(item: dict[str, Any], reason: str) -> None:
    with pytest.raises(SceneRefused, match=reason):
        to_scene(read_item(item, "i.json"))


def landsat(**assets: dict[str, Any]) -> dict[str, Any]:
    return small_item("LC08_L2SP_190027_20230701_20230708_02_T1", "landsat-c2-l2", {**assets, "qa_pixel": {}})


def hls(product: str, **assets: dict[str, Any]) -> dict[str, Any]:
    return small_item(f"HLS.{product}.T33TWN.2023182T100000.v2.0", f"hls2-{product.lower()}", {**assets, "Fmask": {}})


def sentinel(**assets: dict[str, Any]) -> dict[str, Any]:
    return small_item("S2A_MSIL2A_20210701T100031_N0301_R122_T33TWN_20210701T130000", "sentinel-2-l2a", {**assets, "scl": {}})


def naip(**image: Any) -> dict[str, Any]:
    return small_item("m_4709963_se_14_1_20170827", "naip", {"image": image})


def old(name: str) -> dict[str, Any]:
    return {"eo:bands": [{"name": "x", "common_name": name}]}


def new(name: str) -> dict[str, Any]:
    return {"bands": [{"name": "x", "eo:common_name": name}]}


@pytest.mark.parametrize(
    ("item", "asset"),
    [
        (hls("S30", B04=old("nir"), B08=old("red")), "B04"),
        (hls("S30", B04=new("nir"), B08=new("red")), "B04"),
        (hls("L30", B04=old("lwir11")), "B04"),
        (landsat(red=old("nir08"), nir08=old("red")), "red"),
        (landsat(red=new("nir08"), nir08=new("red")), "red"),
        (landsat(green=old("red"), red=old("red")), "green"),
        (landsat(SR_B4=old("red"), SR_B6=old("swir22")), "SR_B6"),
        (sentinel(red=old("nir"), nir=old("red")), "red"),
        (sentinel(red=old("nir08")), "red"),
        (sentinel(red={**old("nir"), "bands": [{"nodata": 0}]}), "red"),
    ],
)
def test_an_asset_that_says_it_is_another_band_is_no_band_of_any_sensor(item: dict[str, Any], asset: str) -> None:
    with pytest.raises(SceneRefused, match=f"asset {asset} says that it is "):
        to_scene(read_item(item, "i.json"))


@pytest.mark.parametrize(
    "item",
    [
        hls("L30", B04=old("red"), B05=old("nir")),
        hls("S30", B05=old("rededge"), B08=new("nir"), B8A=old("rededge")),
        landsat(red=old("red"), nir08=old("nir"), lwir11=old("lwir11")),
        sentinel(B8A=old("rededge"), B09={"eo:bands": [{"name": "B09"}]}),
    ],
)
def test_names_that_publishers_use_for_one_band_are_all_right(item: dict[str, Any]) -> None:
    assert to_scene(read_item(item, "i.json")).bands


@pytest.mark.parametrize("names", [["red"] * 4, ["nir"], ["red", "green", "blue", "blue"], ["green", "red"]])
def test_a_photograph_whose_bands_cannot_be_told_apart_is_refused(names: list[str]) -> None:
    with pytest.raises(SceneRefused, match=f"asset image says that its bands are {names[0]}"):
        to_scene(read_item(naip(**{"eo:bands": [{"common_name": name} for name in names]}), "i.json"))


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ([{"nodata": True}], "no data is True"),
        ([{"nodata": 10**400}], "no data is 1000"),
        ([{"nodata": "zero"}], "no data is zero"),
        ([{"nodata": [0]}], r"no data is \[0\]"),
        ({"nodata": 0}, "list of objects"),
        (5, "list of objects"),
        ([5], "list of objects"),
    ],
)
def test_a_photograph_whose_no_data_is_no_number_is_refused(described: Any, reason: str) -> None:
    with pytest.raises(SceneRefused, match=reason):
        to_scene(read_item(naip(**{"raster:bands": described}), "i.json"))


@pytest.mark.parametrize(("said", "nodata"), [([{"nodata": 255}], 255), ([{"nodata": None}], 0), ([{"nodata": "nan"}], 0), ([{}], 0), (None, 0)])
def test_a_photographs_no_data_is_what_it_publishes(said: Any, nodata: int) -> None:
    assert to_scene(read_item(naip(**{"raster:bands": said}), "i.json")).bands["red"].nodata == nodata


@pytest.mark.parametrize("kind", [5, ["image/tiff"], None])
def test_a_media_type_that_is_no_text_says_nothing(kind: Any) -> None:
    assert to_scene(read_item(naip(type=kind), "i.json")).bands["nir"].index == 4


@pytest.mark.parametrize("sequence", ["²", "9" * 5000, "first", "-1"])
def test_a_sequence_that_is_no_number_makes_no_processing_newer(sequence: str) -> None:
    ordered = []
    for said in (sequence, "0"):
        item = sentinel(red={})
        item["properties"]["s2:sequence"] = said
        read = read_item(item, "i.json")
        ordered.append(profile_of(read).acquisition(read).version)
    assert ordered == sorted(ordered)


def test_an_href_that_is_no_url_costs_the_scene_only_where_it_is_read() -> None:
    item = sentinel(red={}, thumbnail={"href": "//[x/y.png"})
    assert to_scene(read_item(item, "https://example.org/i.json")).bands["red"]
    item["assets"]["red"]["href"] = "//[x/y.tif"
    with pytest.raises(SceneRefused, match="not a URL"):
        to_scene(read_item(item, "https://example.org/i.json"))


@pytest.mark.parametrize("sign", "\x00\n\x7f\x80\x85\x9f\u2028\u2029\u202a\u202e\u2066\u2069/")
def test_an_id_that_would_garble_a_line_is_refused(sign: str) -> None:
    with pytest.raises(SceneRefused, match="garble a line"):
        item_id({"id": f"S2A{sign}L2A"})


def test_items_of_stac_0_8_are_read() -> None:
    old = small_item("S2A_33TWN_20190707_0_L2A", "sentinel-s2-l2a-cogs", {"B02": {}, "B08": {}, "SCL": {}}, constellation="sentinel-2")
    old |= {"stac_version": "0.8.1", "stac_extensions": ["eo"]}
    old["properties"] |= {"sentinel:product_id": "S2A_MSIL2A_20190707T095031_N0212_R079_T33TWN_20190707T112352", "eo:platform": "sentinel-2a"}
    scene = to_scene(read_item(old, "i.json"))
    assert list(scene.bands) == ["blue", "nir"]
    assert "baseline 02.12" in scene.calibration


def test_unknown_cloud_cover_is_not_minus_one_percent(stac_items: Path) -> None:
    item = small_item(
        "LC09_L2SP_190027_20230701_02_T1", "landsat-c2-l2", {"blue": {}, "qa_pixel": {}}, **{"eo:cloud_cover": -1, "landsat:collection_number": "02"}
    )
    assert to_scene(read_item(item, "i.json")).cloud_cover is None
