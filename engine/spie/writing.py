"""The files of a data set: pictures, masks, reflectance, one Parquet table, and the official JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from affine import Affine
from numpy.typing import NDArray
from PIL import Image as Picture
from rasterio.errors import NotGeoreferencedWarning

from engine.spie.chips import TRAIN, VAL, Chip
from engine.spie.samples import Sample, run_lengths

TABLE = "spie.parquet"
NO_DATA = 65535
SCALE = 1e-4

ROWS_OF_A_GROUP = 1000

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("place", pa.int32()),
        pa.field("class", pa.string()),
        pa.field("phrase", pa.string()),
        pa.field("source", pa.string()),
        pa.field("mask_source", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("attributes", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("mask_attributes", pa.string()),
        pa.field("present", pa.bool_()),
        pa.field("mask_pixels", pa.int64()),
        pa.field("valid_pixels", pa.int64()),
        pa.field("regions", pa.int32()),
        pa.field("region_areas_m2", pa.list_(pa.float64())),
        pa.field("index_means", pa.string()),
        pa.field("thresholds", pa.string()),
        pa.field("why_none", pa.string()),
        pa.field("image", pa.string()),
        pa.field("gt_image", pa.string()),
        pa.field("reflectance", pa.string()),
        pa.field("mask_runs", pa.list_(pa.int32())),
        pa.field("valid_runs", pa.list_(pa.int32())),
        pa.field("origin", pa.string()),
        pa.field("bands", pa.list_(pa.string())),
        pa.field("window", pa.list_(pa.int32(), 4)),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("resolution_m", pa.float64()),
        pa.field("crs", pa.string()),
        pa.field("transform", pa.list_(pa.float64(), 6)),
    ]
)
"""Columns of the table; see docs/spie.md."""


class Writer:
    """Writes a data set into a folder, chip after chip."""

    def __init__(self, directory: Path, reflectance: bool) -> None:
        self.directory, self._reflectance = directory, reflectance
        for name in ("images", "masks", *(["reflectance"] if reflectance else [])):
            (directory / name).mkdir()
        self._table = pq.ParquetWriter(directory / TABLE, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._official = {split: _JsonList(directory / f"{split}.json") for split in (TRAIN, VAL)}

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the table and the lists."""
        self._flush()
        self._table.close()
        for each in self._official.values():
            each.close()

    def chip(self, chip: Chip, picture: NDArray[np.uint8], reflectance: NDArray[np.float32]) -> None:
        """Write the picture (H, W, 3) and, unless left out, the reflectance (C, H, W) of a chip."""
        Picture.fromarray(picture).save(self.directory / _image(chip), optimize=False, compress_level=6)
        if self._reflectance:
            _write_reflectance(self.directory / _bands(chip), chip, reflectance)

    def sample(self, sample: Sample, chip: Chip, resolution: float, place: int, split: str, notes: Mapping[str, Any]) -> None:
        """Write the mask and the words of a sample, whose chip was written before."""
        mask = f"masks/{chip.name}__{sample.target}.png"
        Picture.fromarray(sample.truth.mask.astype(np.uint8)).save(self.directory / mask, optimize=False, compress_level=6)
        self._rows.append(self._row(sample, chip, resolution, place, split, notes) | {"gt_image": mask})
        self._official[split].append(
            {
                "id": sample.sample_id,
                "image": _image(chip),
                "gt_image": mask,
                "conversations": [{"from": "human", "value": f"<image>\n{sample.instruction}"}, {"from": "gpt", "value": sample.answer}],
            }
        )
        if len(self._rows) == ROWS_OF_A_GROUP:
            self._flush()

    def _row(self, sample: Sample, chip: Chip, resolution: float, place: int, split: str, notes: Mapping[str, Any]) -> dict[str, Any]:
        summary = sample.truth.summary
        return {
            "id": sample.sample_id,
            "split": split,
            "place": place,
            "class": sample.target,
            "phrase": sample.phrase,
            "source": sample.source,
            "mask_source": sample.truth.source,
            "instruction": sample.instruction,
            "attributes": None if sample.prior is None else sample.prior.attributes,
            "answer": sample.answer,
            "mask_attributes": sample.truth.attributes,
            "present": summary.pixels > 0,
            "mask_pixels": summary.pixels,
            "valid_pixels": summary.valid_pixels,
            "regions": summary.count,
            "region_areas_m2": [round(region.area * resolution**2, 2) for region in summary.regions],
            "index_means": _json({name: None if value is None else round(value, 4) for name, value in sample.index_means.items()}),
            "thresholds": _json(notes["thresholds"]),
            "why_none": notes["why_none"],
            "mask_runs": run_lengths(sample.truth.mask),
            "valid_runs": run_lengths(sample.valid),
            "resolution_m": resolution,
        } | self._where(chip)

    def _where(self, chip: Chip) -> dict[str, Any]:
        transform = chip_transform(chip)
        return {
            "image": _image(chip),
            "reflectance": _bands(chip) if self._reflectance else None,
            "origin": chip.image.origin,
            "bands": list(chip.image.bands),
            "window": list(chip.box),
            "height": chip.box.height,
            "width": chip.box.width,
            "crs": None if chip.image.crs is None else chip.image.crs.to_string(),
            "transform": list(transform)[:6],
        }

    def _flush(self) -> None:
        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()


class _JsonList:
    """A JSON list of objects, written one by one."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="\n")
        self._file.write("[")
        self._first = True

    def append(self, item: Mapping[str, Any]) -> None:
        """Write one more object."""
        self._file.write(("\n" if self._first else ",\n") + json.dumps(item, ensure_ascii=False))
        self._first = False

    def close(self) -> None:
        """Finish the list."""
        self._file.write("\n]\n" if not self._first else "]\n")
        self._file.close()


def chip_transform(chip: Chip) -> Affine:
    """Return the transform of a chip's own pixels."""
    return chip.image.transform @ Affine.translation(chip.box.left, chip.box.top)


def _write_reflectance(path: Path, chip: Chip, reflectance: NDArray[np.float32]) -> None:
    """Write reflectance as uint16 in ten-thousandths, 65535 = no data; below 0 counts as 0."""
    numbers = np.where(np.isfinite(reflectance), np.clip(np.rint(np.nan_to_num(reflectance) / SCALE), 0, NO_DATA - 1), NO_DATA)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": len(numbers), "height": chip.box.height, "width": chip.box.width}
    georeference = {} if chip.image.crs is None else {"crs": chip.image.crs.to_wkt(), "transform": chip_transform(chip)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, **georeference, nodata=NO_DATA, compress="deflate", predictor=2, interleave="pixel") as target:
            target.write(numbers.astype(np.uint16))
            target.descriptions = chip.image.bands
            target.scales = [SCALE] * len(numbers)


def _image(chip: Chip) -> str:
    return f"images/{chip.name}.png"


def _bands(chip: Chip) -> str:
    return f"reflectance/{chip.name}.tif"


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)
