"""The simulated world: one landscape, a function of the place, that every scene of the demo looks at."""

from __future__ import annotations

import numpy as np

from pipeline.demo.ground import Field, Ground
from pipeline.demo.nature import paint_lakes, paint_rivers, paint_rock, paint_terraces, paint_woods
from pipeline.demo.noise import Patch, fractal, smoothstep
from pipeline.demo.settled import paint_fields, paint_industry, paint_pits, paint_roads, paint_towns
from pipeline.demo.spectra import TEXTURE


def landscape(patch: Patch, seed: int) -> Ground:
    """Return the ground of `patch`: the same pixel is the same ground whatever the patch that it is computed in."""
    hills = highland(patch, seed)
    ground = Ground.blank(patch, seed, relief(patch, seed, hills))
    paint_fields(ground)
    paint_woods(ground, hills)
    paint_rock(ground, hills)
    paint_terraces(ground)
    paint_pits(ground)
    paint_roads(ground)
    paint_towns(ground)
    paint_industry(ground)
    paint_rivers(ground)
    paint_lakes(ground)
    _texture(ground)
    return ground


def highland(patch: Patch, seed: int) -> Field:
    """Return how hilly each pixel is, 0 in the plain to 1 in the hills: ranges run from west to east, 22 km apart."""
    ridge = patch.y[:, None].astype(np.float32) + 1100 * fractal(patch, seed, 1, 6000, 3)
    return smoothstep(np.sin((ridge - 800) * np.float32(2 * np.pi / 22000)), 0.25, 0.95)


def relief(patch: Patch, seed: int, hills: Field) -> Field:
    """Return the elevation in metres, float32."""
    return 90 + 5 * fractal(patch, seed, 2, 2500, 3) + hills * (320 + 300 * fractal(patch, seed, 3, 2600, 6, 0.48))


def _texture(ground: Ground) -> None:
    """Vary the brightness: broad patches of soil and vigour, and grain from pixel to pixel as coarse as the material has it."""
    ground.tone *= 1 + np.float32(0.06) * fractal(ground.patch, ground.seed, 4, 900, 4, 0.7)
    grain = fractal(ground.patch, ground.seed, 5, 10, 1)
    strength = TEXTURE[np.where(ground.blend < 0.5, ground.first, ground.second)]
    ground.tone *= np.clip(1 + strength * grain, 0.4, 1.7)
