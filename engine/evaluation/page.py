"""The page of an evaluation: tables, reliability diagrams, and every chip beside its labels, predictions and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from engine.bands import channel_of
from engine.evaluation import tables
from engine.evaluation.metrics import IGNORE
from engine.evaluation.predictors import Prediction
from engine.training.chip_folder import LabelledChips

GREY, WHITE, RED, PALE = (np.array(each, np.uint8) for each in ((200, 200, 200), (255, 255, 255), (202, 0, 32), (232, 232, 232)))
"""Ignored or no data; none of the classes; wrong; right."""
SIDE = 220
"""Side of the reliability diagrams in pixels."""


@dataclass(frozen=True)
class ChipLine:
    """One chip on the page."""

    name: str
    place: str
    images: tuple[tuple[str, str], ...]
    """Caption and data URI."""
    right: str
    """Share of the labelled pixels that SPEX gets right."""


def write_page(path: Path, document: Mapping[str, Any], chips: LabelledChips, predictions: Sequence[Prediction], colors: Sequence[str]) -> None:
    """Write the page; `predictions` are those on the main band set, `colors` ``#rrggbb`` by class."""
    environment = Environment(
        loader=PackageLoader("engine.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("evaluation.html").render(
        document=document,
        columns=tables.COLUMNS,
        figure=tables.figure,
        method_name=tables.method_name,
        legend=list(zip(chips.classes, colors, strict=True)),
        chips=[_chip_line(chips, index, predictions, palette(colors)) for index in range(len(chips))],
        diagrams=[
            (tables.method_name(each), diagram(each["reliability"], dict(zip(chips.classes, colors, strict=True)))) for each in _drawn(document)
        ],
        side=SIDE,
    )
    path.write_text(page, encoding="utf-8")


def _drawn(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    main = document["main"]["bands"]
    return [each for each in document["results"] if each["bands"] == main and each["arm"] == "none" and each["reliability"]]


def palette(colors: Sequence[str]) -> NDArray[np.uint8]:
    """Return colours (256, 3) of class indices: white for none of them, grey for 255."""
    table = np.full((256, 3), WHITE, np.uint8)
    for index, color in enumerate(colors):
        table[index] = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    table[IGNORE] = GREY
    return table


def _chip_line(chips: LabelledChips, index: int, predictions: Sequence[Prediction], table: NDArray[np.uint8]) -> ChipLine:
    labels = (chips.labels if chips.clean is None else chips.clean)[index]
    images = [("image", natural_colour(chips.reflectance[index], chips.bands)), ("labels", table[chips.labels[index]])]
    if chips.clean is not None:
        images.append(("clean labels", table[labels]))
    known = labels != IGNORE
    for each in predictions:
        if each.arm == "none":
            guess = each.guess[index]
            images += [(each.method, table[guess]), (f"{each.method}: errors", error_picture(labels, guess))]
    right = (predictions[0].guess[index] == labels)[known].mean() if known.any() else float("nan")
    return ChipLine(chips.names[index], chips.places[index], tuple((caption, png(image)) for caption, image in images), f"{right:.1%}")


def natural_colour(chip: NDArray[np.float32], bands: Sequence[str]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) of red, green and blue, stretched from the 2nd to the 98th percentile with a root; grey where no data."""
    channels = [channel_of(name, bands) for name in ("red", "green", "blue")]
    planes = np.stack([chip[0 if channel is None else channel] for channel in channels], -1)
    finite = np.isfinite(planes).all(-1)
    low, high = np.percentile(planes[finite], (2, 98)) if finite.any() else (0.0, 1.0)
    stretched = np.clip((np.nan_to_num(planes) - low) / max(float(high - low), 0.05), 0, 1) ** 0.7
    return np.where(finite[..., None], np.round(255 * stretched), GREY).astype(np.uint8)


def error_picture(labels: NDArray[np.uint8], guess: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3): red where wrong, pale where right, grey where there is no label."""
    wrong = np.where((labels != guess)[..., None], RED, PALE)
    return np.asarray(np.where((labels == IGNORE)[..., None], GREY, wrong), np.uint8)


def png(picture: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, 3) as a data URI."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if len(np.unique(picture.reshape(-1, 3), axis=0)) <= 64:
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def diagram(reliability: Mapping[str, Sequence[Mapping[str, Any]]], colors: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return for each class and the winner its name, colour and the points of an SVG polyline of frequency over probability."""
    lines = []
    for name, bins in reliability.items():
        points = " ".join(f"{each['probability'] * SIDE:.1f},{(1 - each['frequency']) * SIDE:.1f}" for each in bins)
        lines.append((name, colors.get(name, "#000000"), points))
    return lines
