"""Score water on an aerial photograph that the model has never seen the like of: NAIP over prairie potholes, 5 m, blue, green, red and near infrared.

    python benchmarks/potholes.py SCENES [--model models/spex-small] [--picture FILE] [--json]

SCENES is the folder of the three photographs; the one of 27 August 2017 is scored against `potholes_2017_water.geojson`, open water that was drawn by
hand on its colour-infrared picture (WGS 84; reeds, wet meadows, islands and roads are not water; the shore is good to about one pixel).

The photograph has display numbers 0..255, no reflectance. They are taken as linear, 255 being a reflectance of 0.25 in the visible bands and of
0.55 in the near infrared, by which its median, green crops, gets the reflectance of green crops (blue 0.07, green 0.10, red 0.08, near infrared
0.40). That is an approximation of an unknown stretch; figures for twice and half of it are printed beside, and NDWI above 0. Aim: IoU 0.60; exit
status 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.features import rasterize
from rasterio.warp import transform_geom

PHOTOGRAPH = "m_4709963_se_14_1_20170827.tif"
OUTLINES = Path(__file__).with_name("potholes_2017_water.geojson")
CHANNELS = ("red", "green", "blue", "nir")
BANDS = ("blue", "green", "red", "nir")
FULL_SCALE = {"blue": 0.25, "green": 0.25, "red": 0.25, "nir": 0.55}
"""Reflectance that the display number 255 is taken for."""
CLASSES = ("vegetation", "building", "water", "bare")
AIM = 0.60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="folder of the photographs")
    parser.add_argument("--model", default="models/spex-small")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--picture", type=Path, help="also write the photograph with the outlines drawn and predicted")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    path = arguments.scenes / PHOTOGRAPH
    truth = drawn_water(path)
    predicted = {
        name: spex_water(reflectance(path, factor), arguments.model, arguments.threads) for name, factor in (("1", 1.0), ("2", 2.0), ("0.5", 0.5))
    }
    figures = {
        "water_share": float(truth.mean()),
        "spex": scores(predicted["1"], truth),
        "ndwi": scores(ndwi(reflectance(path)) > 0, truth),
        "spex_at_other_scales": {name: scores(mask, truth)["iou"] for name, mask in predicted.items()},
    }
    if arguments.picture:
        write_picture(arguments.picture, path, truth, predicted["1"])
    print(json.dumps(figures, indent=1) if arguments.json else report(figures))
    return 0 if figures["spex"]["iou"] >= AIM else 1


def reflectance(path: Path, factor: float = 1.0) -> np.ndarray:
    """Return (4, H, W) float32 in the order of `BANDS`, NaN = no data."""
    with rasterio.open(path) as photograph:
        numbers = photograph.read().astype(np.float32)
        missing = photograph.dataset_mask() == 0
    planes = dict(zip(CHANNELS, numbers, strict=True))
    stacked = np.stack([planes[name] / 255 * FULL_SCALE[name] * factor for name in BANDS])
    stacked[:, missing] = np.nan
    return stacked


def drawn_water(path: Path) -> np.ndarray:
    """Return where the outlines hold water (H, W), on the photograph's grid."""
    features = json.loads(OUTLINES.read_text(encoding="utf-8"))["features"]
    with rasterio.open(path) as photograph:
        shapes = [transform_geom("EPSG:4326", photograph.crs, feature["geometry"]) for feature in features]
        return rasterize(shapes, photograph.shape, transform=photograph.transform, dtype="uint8").astype(bool)


def spex_water(photograph: np.ndarray, model: str, threads: int | None) -> np.ndarray:
    """Return where water has the highest probability of the four classes (H, W)."""
    from engine import Spex

    result = Spex.load(model, threads=threads).segment(photograph[None], BANDS, CLASSES)
    return result.probabilities[0].argmax(0) == CLASSES.index("water")


def ndwi(photograph: np.ndarray) -> np.ndarray:
    """Return (green - nir) / (green + nir), (H, W)."""
    green, nir = photograph[BANDS.index("green")], photograph[BANDS.index("nir")]
    return (green - nir) / np.maximum(green + nir, 1e-3)


def scores(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return intersection over union, precision and recall of a mask."""
    hits = float((guess & truth).sum())
    return {"iou": hits / float((guess | truth).sum()), "precision": hits / max(float(guess.sum()), 1.0), "recall": hits / float(truth.sum())}


def report(figures: dict) -> str:
    """Return the figures as lines for a person."""
    line = "{:<12} IoU {iou:.3f}, precision {precision:.3f}, recall {recall:.3f}".format
    others = ", ".join(f"x{name}: {iou:.3f}" for name, iou in figures["spex_at_other_scales"].items())
    return "\n".join(
        [
            f"prairie potholes 2017: {figures['water_share']:.1%} drawn as water",
            line("SPEX", **figures["spex"]),
            line("NDWI > 0", **figures["ndwi"]),
            f"SPEX with the full scale times a factor, {others}",
            *([] if figures["spex"]["iou"] >= AIM else [f"BELOW THE AIM of IoU {AIM}"]),
        ]
    )


def write_picture(path: Path, photograph: Path, truth: np.ndarray, guess: np.ndarray) -> None:
    """Write the colour-infrared picture with the outlines as drawn (yellow) and as predicted (cyan)."""
    from PIL import Image
    from scipy import ndimage

    with rasterio.open(photograph) as file:
        picture = np.moveaxis(file.read((4, 1, 2)), 0, -1)
    for mask, colour in ((guess, (0, 255, 255)), (truth, (255, 255, 0))):
        picture[mask & ~ndimage.binary_erosion(mask)] = colour
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    sys.exit(main())
