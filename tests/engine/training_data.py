"""Made-up chips, imagery and spectra of the forms that training reads, and a narrow model to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from engine.training.config import TrainingSpec

NARROW: dict[str, Any] = {
    "dims": [8, 8, 12, 16, 16],
    "depths": [0, 0, 0, 1, 0],
    "aggregate_dim": 16,
    "decoder_dim": 16,
    "decoder_heads": 2,
    "decoder_layers": 1,
    "decoder_mlp": 16,
    "fine_dim": 8,
    "image_tokens": 2,
    "language": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
    },
}

SPECTRA = {
    10: (0.03, 0.05, 0.04, 0.4, 0.2, 0.1),
    50: (0.15, 0.16, 0.18, 0.22, 0.25, 0.22),
    60: (0.2, 0.25, 0.3, 0.35, 0.45, 0.4),
    80: (0.05, 0.04, 0.02, 0.01, 0.01, 0.01),
}
"""Blue, green, red, nir, swir16 and swir22 of WorldCover codes."""

SALT = (0.5, 0.55, 0.6, 0.6, 0.3, 0.2)


def landscape(side: int, codes: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return codes (side, side) in stripes of random width."""
    cuts = np.sort(generator.integers(4, side - 4, len(codes) - 1))
    rows = np.asarray(codes)[np.searchsorted(cuts, np.arange(side), side="right")]
    return np.broadcast_to(rows[:, None], (side, side)) if generator.random() < 0.5 else np.broadcast_to(rows[None], (side, side))


def reflectance_of(codes: np.ndarray, spectra: dict[int, tuple[float, ...]], generator: np.random.Generator) -> np.ndarray:
    """Return (6, H, W) float32 of codes (H, W)."""
    values = np.zeros((6, *codes.shape), np.float32)
    for code, spectrum in spectra.items():
        values[:, codes == code] = np.array(spectrum, np.float32)[:, None]
    return (values * generator.uniform(0.9, 1.1, values.shape)).astype(np.float32)


def write_training_data(folder: Path, chips: int = 6, side: int = 48) -> Path:
    """Write train.npz, red_edge.npz, spectra.npz and scene.tif."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    cover = np.stack([landscape(side, tuple(generator.permutation(list(SPECTRA)).tolist()), generator) for _ in range(chips)]).astype(np.uint8)
    six = np.stack([reflectance_of(each, SPECTRA, generator) for each in cover])
    seven = np.concatenate([six[:, :1], six], 1)
    np.savez(
        folder / "train.npz",
        reflectance=(seven * 1e4).astype(np.int16),
        qa=np.zeros(cover.shape, np.uint8),
        worldcover=cover,
        place=np.arange(chips, dtype=np.int16),
        chip_id=np.arange(chips),
    )
    twelve = generator.uniform(200, 4000, (3, 12, side, side)).astype(np.uint16)
    np.savez(folder / "red_edge.npz", digital_numbers=twelve)
    codes = np.repeat(np.arange(1, 9), 60)
    toa = {1: 50, 2: 60, 3: 10, 4: 10, 5: 10, 6: 80, 7: 10, 8: 10}
    nine = np.stack([np.array(SPECTRA[toa[int(code)]])[[0, 1, 2, 2, 3, 3, 3, 4, 5]] for code in codes])
    spectra = nine * generator.uniform(0.8, 1.2, nine.shape)
    np.savez(folder / "spectra.npz", reflectance=(spectra * 1e4).astype(np.uint16), land_cover=codes.astype(np.uint8))
    write_raster(folder / "scene.tif", six[0][[2, 1, 0, 3]] * 255)
    return folder


def write_raster(path: Path, values: np.ndarray) -> None:
    """Write (C, H, W) as an 8 bit GeoTIFF, or as it is where it is of another type than float."""
    stored = values.astype(np.uint8) if values.dtype.kind == "f" else values
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(stored), "height": stored.shape[1], "width": stored.shape[2], "dtype": stored.dtype}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(500000, 5200000, 10, 10), **profile) as file:
        file.write(stored)


def write_user_chips(folder: Path, classes: dict[int, str], new: str = "{}", chips: int = 6, side: int = 48) -> Path:
    """Write a folder of chips in four bands as digital numbers: stripes of some codes of `SPECTRA`, and of salt as code 1."""
    generator = np.random.default_rng(5)
    for number in range(chips):
        codes = landscape(side, tuple(generator.permutation(list(classes)).tolist()), generator)
        chip = reflectance_of(codes, SPECTRA | {1: SALT}, generator)[:4]
        write_raster(folder / "images" / f"chip{number}.tif", (chip * 1e4).astype(np.uint16))
        write_raster(folder / "labels" / f"chip{number}.tif", np.array(codes[None], np.uint8))
    legend = ", ".join(f"{code}: {name}" for code, name in classes.items())
    (folder / "classes.yaml").write_text(f"bands: [blue, green, red, nir]\nclasses: {{{legend}}}\nscale: 0.0001\nnew: {new}\n")
    return folder


def training_spec(folder: Path, /, **changes: Any) -> TrainingSpec:
    """Return a training of a narrow model in four stages of a few steps; `changes` replace whole sections."""
    spec: dict[str, Any] = {
        "model": {"preset": "spex-small", "changes": NARROW},
        "data": {
            "root": str(folder),
            "chips": "train.npz",
            "red_edge": "red_edge.npz",
            "spectra": "spectra.npz",
            "unlabelled": [
                {"path": "train.npz", "array": "reflectance", "bands": {"blue": 2, "green": 3, "red": 4, "nir": 5, "swir16": 6}, "scale": 1e-4},
                {"path": "*.tif", "bands": {"red": 1, "green": 2, "blue": 3, "nir": 4}, "scale": 1 / 255},
            ],
        },
        "stages": {
            "pretraining": {"steps": 4, "batch": 2, "size": 32, "rate": 5e-3, "warm_up": 2},
            "alignment": {"steps": 3, "batch": 2, "size": 32, "rate": 5e-3, "warm_up": 2},
            "instruction": {"steps": 4, "batch": 2, "size": 32, "rate": 5e-3, "warm_up": 2},
            "distillation": {"steps": 4, "batch": 2, "size": 32, "rate": 5e-3, "warm_up": 2},
        },
        "threads": 1,
        "log_steps": 1,
        "device": "cpu",
    }
    return TrainingSpec.model_validate(spec | changes)
