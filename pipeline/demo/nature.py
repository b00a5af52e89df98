"""Woods, rock, rivers and lakes."""

from __future__ import annotations

import numpy as np

from pipeline.demo.ground import Field, Ground
from pipeline.demo.noise import fractal, scatter, smoothstep
from pipeline.demo.spectra import Material

RIVER_SPACING = 9000.0
"""Metres between rivers, which run from north to south."""


def paint_woods(ground: Ground, hills: Field) -> None:
    """Paint woods, denser in the hills: deciduous below, conifers above and in stands."""
    patch, seed = ground.patch, ground.seed
    density = fractal(patch, seed, 10, 1500, 5, 0.55) + 1.5 * hills
    conifers = smoothstep(fractal(patch, seed, 11, 1100, 4) + 1.3 * hills, 0.2, 1.3)
    ground.paint(density > 1.05, Material.DECIDUOUS, Material.CONIFER, conifers)


def paint_rock(ground: Ground, hills: Field) -> None:
    """Paint bare ridges with scree, and dry grass that thins out towards them."""
    crest = fractal(ground.patch, ground.seed, 12, 2200, 6, 0.58) + (0.9 * hills - 0.9).astype(np.float32)
    crest -= 0.8 * (1 - smoothstep(hills, 0.1, 0.6))
    ground.paint(crest > 0.45, Material.DRY_GRASS, Material.ROCK, smoothstep(crest, 0.45, 0.8))


def river_offset(ground: Ground) -> Field:
    """Return the distance east of the nearest river's axis, roughly in metres."""
    patch, seed = ground.patch, ground.seed
    bent = patch.x[None, :].astype(np.float32) + 750 * fractal(patch, seed, 20, 4200, 3, 0.45)
    return ((bent + 900 + RIVER_SPACING / 2) % RIVER_SPACING - RIVER_SPACING / 2).astype(np.float32)


def paint_terraces(ground: Ground) -> None:
    """Paint terraces of dry gravel along the rivers, with steppe grass that thickens away from them."""
    terrace = fractal(ground.patch, ground.seed, 22, 2100, 5, 0.55) - (np.abs(river_offset(ground)) / 2200).astype(np.float32)
    ground.paint(terrace > 0.2, Material.GRAVEL, Material.DRY_GRASS, 0.55 - 0.5 * smoothstep(terrace, 0.2, 0.55))


def paint_rivers(ground: Ground) -> None:
    """Paint braided gravel rivers: riverside wood, gravel bars and turbid channels."""
    patch, seed = ground.patch, ground.seed
    offset = river_offset(ground)
    reach = 260 + 70 * fractal(patch, seed, 21, 2600, 2)
    wood = np.abs(offset) < reach + 60 * fractal(patch, seed, 23, 500, 3)
    ground.paint(wood, Material.DECIDUOUS, Material.PASTURE, smoothstep(fractal(patch, seed, 24, 300, 3), 0.2, 1.2))
    bed = np.abs(offset) < reach
    ground.paint(bed, Material.GRAVEL, Material.SAND, smoothstep(fractal(patch, seed, 25, 260, 3, stretch=2.0), -0.8, 1.2))
    braid = fractal(patch, seed, 26, 330, 4, 0.5, stretch=2.6)
    ground.paint(bed & (braid > 1.2), Material.DRY_GRASS, Material.DECIDUOUS, 0.4)
    main = np.abs(offset - 110 * fractal(patch, seed, 27, 1300, 2)) < 70
    ground.paint(main | (bed & (np.abs(braid) < 0.17)), Material.TURBID_WATER, Material.CLEAR_WATER, 0.25)


def paint_lakes(ground: Ground) -> None:
    """Paint lakes: clear in the middle, turbid in the shallows, with a sandy or reedy shore."""
    # Lakes keep away from the rivers, which would fill them with gravel.
    away = smoothstep(np.abs(river_offset(ground)), 250, 800)
    wobble = fractal(ground.patch, ground.seed, 30, 700, 4) - 6 * (1 - away)
    for spot in scatter(ground.patch, ground.seed, 31, 3500, 1400):
        radius = 380 + 560 * float(spot.chance[0])
        near = ground.around(spot, 1.6 * radius)
        if near is None:
            continue
        along, across = near.turned(float(spot.chance[1]) * np.pi)
        depth = 1 - np.hypot(along * 0.8, across * 1.25) / radius + 0.22 * wobble[near.rows, near.columns]
        shore = (depth > -20 / radius) & (depth <= 0)
        near.view.paint(shore, Material.SAND, Material.PASTURE, 0.3 if spot.chance[2] < 0.5 else 0.8)
        near.view.paint(depth > 0, Material.CLEAR_WATER, Material.TURBID_WATER, 0.9 * (1 - smoothstep(depth, 0.0, 0.35)))
