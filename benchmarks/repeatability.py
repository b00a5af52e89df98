"""The same job, cut and worked otherwise: the same class at every pixel, and the same bytes wherever the tile side is the same.

    python benchmarks/repeatability.py [FOLDER]

Variants, each a fresh run: other block sides, other tile sides, scenes listed in another order, two workers. The demo's two UTM zones make every
variant reproject.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from common import differences, published_files, scratch, small_demo, spexmap


def landcover(output: Path) -> tuple[np.ndarray, object]:
    """Return classes and transform of the output's only period."""
    with rasterio.open(next(output.glob("*/*/landcover.vrt"))) as dataset:
        return dataset.read(1), dataset.transform


def reversed_catalog(demo: Path, target: Path) -> Path:
    """Write the demo's items as an item collection, last first, and return its path."""
    items = []
    for path in sorted(demo.rglob("*.json"), reverse=True):
        document = json.loads(path.read_text())
        if document.get("type") == "Feature" and "assets" in document:
            for asset in document["assets"].values():
                asset["href"] = str((path.parent / asset["href"]).resolve())
            document["links"] = [{"rel": "self", "href": str(path.resolve()), "type": "application/geo+json"}]
            items.append(document)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return target


def main() -> int:
    """Run all variants and return the exit status."""
    folder = scratch("repeatability")
    demo = small_demo(folder)
    listed_backwards = reversed_catalog(demo, folder / "reversed.geojson")
    base = ["run", str(demo / "job.yaml"), "--set=grid.tile=384"]
    variants = {
        "first": ["--block=384"],
        "blocks of 300, no multiple of the stride, and scenes in another order": [
            f"--set=source.catalog={listed_backwards}",
            "--block=300",
        ],
        "two workers, blocks of 192": ["--workers=2", "--block=192"],
        "tile 320": ["--set=grid.tile=320", "--block=320"],
        "tile 2048": ["--set=grid.tile=2048"],
    }
    wrong, expected, classes = [], {}, np.zeros(0)
    for number, (name, options) in enumerate(variants.items()):
        output = folder / f"variant-{number}"
        spexmap(*base, f"--set=output={output}", *options)
        files, (drawn, transform) = published_files(output), landcover(output)
        if name == "first":
            expected, classes, first_transform = files, drawn, transform
        same_shape = drawn.shape == classes.shape and transform == first_transform
        pixels = int((drawn != classes).sum()) if same_shape else drawn.size
        changed = [] if name.startswith("tile") else differences(expected, files)
        print(f"{name}: {pixels} of {drawn.size} pixels differ, {len(changed)} of {len(files)} files differ", *changed[:6], sep="\n    ", flush=True)
        if pixels or changed:
            wrong.append(name)
    print(
        "repeatability:",
        f"FAILED for {', '.join(wrong)}" if wrong else "every variant gives the same classes and, with the same tiles, the same bytes",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
