"""What people made of the land: fields, roads, pits, towns and works."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.ground import Field, Ground, Surroundings
from pipeline.demo.noise import fractal, scatter, smoothstep, uniform
from pipeline.demo.spectra import Material


def paint_fields(ground: Ground) -> None:
    """Paint parcels: districts of parallel strips with their own direction, each parcel with its crop, cover and soil, hedges and tracks between."""
    along, across, district = _districts(ground)
    row = np.floor(across / 85).astype(np.int64)
    length = 170 + 130 * uniform(ground.seed, 41, district, row)
    column = np.floor(along / length).astype(np.int64)
    own = district * 64 + row
    crop, soil, vigour = (uniform(ground.seed, 42 + k, own, column) for k in range(3))
    open_soil = 0.04 + 0.3 * soil
    everywhere = np.ones(ground.patch.shape, bool)
    ground.paint(everywhere, Material.PASTURE, Material.DRY_GRASS, 0.45 * vigour)
    ground.paint(crop < 0.62, Material.GREEN_CROP, Material.DARK_SOIL, open_soil)
    ground.paint(crop < 0.25, Material.RIPE_CROP, Material.GREEN_CROP, 0.1 + 0.5 * vigour)
    ground.paint(crop < 0.035, Material.BRIGHT_SOIL, Material.DRY_GRASS, open_soil * 0.5)
    ground.tone *= 0.86 + 0.28 * soil
    edge = np.minimum(across - row * 85, along - column * length)
    hedge = uniform(ground.seed, 45, own, column) < 0.18
    ground.paint(edge < 5, Material.DRY_GRASS, Material.BRIGHT_SOIL, 0.4)
    ground.paint((edge < 12) & hedge, Material.DECIDUOUS, Material.PASTURE, 0.2)


def _districts(ground: Ground) -> tuple[Field, Field, NDArray[np.int64]]:
    """Return each pixel's coordinates along and across its district's strips (metres) and the district's number."""
    nearest = np.full(ground.patch.shape, np.inf, np.float32)
    along, across = np.zeros_like(nearest), np.zeros_like(nearest)
    district = np.zeros(ground.patch.shape, np.int64)
    wobble = 130 * fractal(ground.patch, ground.seed, 40, 900, 2)
    for spot in scatter(ground.patch, ground.seed, 46, 1300, 2600):
        near = ground.around(spot, 2600)
        if near is None:
            continue
        here = (near.rows, near.columns)
        distance = np.hypot(near.east + wobble[here], near.north)
        u, v = near.turned(float(spot.chance[0]) * np.pi)
        closer = distance < nearest[here]
        nearest[here][closer] = distance[closer]
        along[here][closer], across[here][closer] = u[closer], v[closer]
        district[here][closer] = spot.number
    return along, across, district


def paint_roads(ground: Ground) -> None:
    """Paint country roads, 3 km apart both ways, and a motorway every 9 km."""
    patch, seed = ground.patch, ground.seed
    sideways = patch.x[None, :].astype(np.float32) + 260 * fractal(patch, seed, 50, 2400, 2)
    upwards = patch.y[:, None].astype(np.float32) + 260 * fractal(patch, seed, 51, 2400, 2)
    for phase in (sideways - 1500, upwards + 300):
        ground.paint(np.abs((phase + 1500) % 3000 - 1500) < 7, Material.ASPHALT)
    motorway = np.abs((upwards - 2100 + 4500) % 9000 - 4500)
    ground.paint(motorway < 26, Material.PASTURE)
    ground.paint((motorway < 17) & (motorway > 2), Material.ASPHALT, Material.CONCRETE, 0.2)


def paint_pits(ground: Ground) -> None:
    """Paint sand and gravel pits, some with a pond of groundwater."""
    wobble = fractal(ground.patch, ground.seed, 60, 350, 4)
    for spot in scatter(ground.patch, ground.seed, 61, 2300, 700):
        radius = 170 + 230 * float(spot.chance[0])
        near = ground.around(spot, 1.7 * radius)
        if near is None or spot.chance[1] > 0.7:
            continue
        along, across = near.turned(float(spot.chance[2]) * np.pi)
        depth = 1 - np.hypot(along * 0.75, across * 1.3) / radius + 0.22 * wobble[near.rows, near.columns]
        mixture = smoothstep(wobble[near.rows, near.columns], -1, 1)
        near.view.paint(depth > 0, Material.GRAVEL, Material.SAND if spot.chance[3] < 0.6 else Material.BRIGHT_SOIL, mixture)
        if spot.chance[4] < 0.35:
            near.view.paint(depth > 0.6, Material.TURBID_WATER, Material.CLEAR_WATER, 0.5)


def paint_towns(ground: Ground) -> None:
    """Paint towns and villages: streets, lots with roofs of several kinds, yards, gardens and trees, denser towards the middle."""
    wobble = fractal(ground.patch, ground.seed, 70, 600, 4)
    for spacing, stream, least, spread, share in ((3300.0, 71, 540.0, 480.0, 1.0), (1500.0, 72, 130.0, 120.0, 0.55)):
        for spot in scatter(ground.patch, ground.seed, stream, spacing, 1700):
            radius = least + spread * float(spot.chance[0])
            near = ground.around(spot, 1.6 * radius)
            if near is None or spot.chance[1] > share:
                continue
            inside = 1 - np.hypot(near.east, near.north) / radius + 0.28 * wobble[near.rows, near.columns]
            _paint_quarter(ground.seed, near, inside, spot.number, float(spot.chance[2]) * np.pi)


def _paint_quarter(seed: int, near: Surroundings, inside: Field, number: int, angle: float) -> None:
    u, v = near.turned(angle)
    town = inside > 0
    core = smoothstep(inside, 0.1, 0.6)
    lot_u, lot_v = np.floor(u / 18).astype(np.int64), np.floor(v / 21).astype(np.int64)
    kind, use = uniform(seed, number * 2 + 1, lot_u, lot_v), uniform(seed, number * 2 + 2, lot_u, lot_v)
    view = near.view
    paved = use < 0.55 + 0.35 * core
    green = 0.42 - 0.2 * core
    view.paint(town & ~paved, Material.PASTURE, Material.DECIDUOUS, kind)
    view.paint(town & paved, Material.CONCRETE, Material.PASTURE, green)
    view.paint(town & paved & (kind > 0.5), Material.ASPHALT, Material.DECIDUOUS, green)
    roof = town & (u - lot_u * 18 > 3.5) & (v - lot_v * 21 > 4.5) & (use < 0.8 + 0.2 * core)
    view.paint(roof, Material.RED_TILE, Material.DECIDUOUS, 0.8 * green)
    view.paint(roof & (kind < 0.5), Material.DARK_ROOF, Material.DECIDUOUS, 0.8 * green)
    view.paint(roof & (kind < 0.2), Material.CONCRETE, Material.DARK_ROOF, 0.5)
    view.paint(roof & (kind < 0.05), Material.METAL_ROOF)
    street = (u % 72 < 11) | (v % 126 < 11)
    view.paint(town & street, Material.ASPHALT, Material.DECIDUOUS, 0.8 * green)
    park = uniform(seed, number * 2 + 3, np.floor(u / 72).astype(np.int64), np.floor(v / 126).astype(np.int64)) > 0.95
    view.paint(town & park & ~street, Material.PASTURE, Material.DECIDUOUS, 0.6)


def paint_industry(ground: Ground) -> None:
    """Paint works and warehouses: large flat roofs among asphalt yards."""
    wobble = fractal(ground.patch, ground.seed, 80, 500, 2)
    for spot in scatter(ground.patch, ground.seed, 81, 2900, 700):
        radius = 210 + 200 * float(spot.chance[0])
        near = ground.around(spot, 1.5 * radius)
        if near is None or spot.chance[1] > 0.6:
            continue
        u, v = near.turned(float(spot.chance[2]) * np.pi)
        inside = np.maximum(np.abs(u) / 1.3, np.abs(v)) / radius < 0.85 + 0.1 * wobble[near.rows, near.columns]
        lot_u, lot_v = np.floor(u / 120).astype(np.int64), np.floor(v / 85).astype(np.int64)
        kind = uniform(ground.seed, spot.number + 7, lot_u, lot_v)
        roof = inside & (u - lot_u * 120 > 28) & (v - lot_v * 85 > 24)
        near.view.paint(inside, Material.ASPHALT, Material.PASTURE, 0.25)
        near.view.paint(roof & (kind < 0.85), Material.CONCRETE, Material.DARK_ROOF, 0.6 - 0.5 * kind)
        near.view.paint(roof & (kind < 0.35), Material.METAL_ROOF, Material.DARK_ROOF, 0.3)
        near.view.paint(inside & (kind >= 0.93), Material.DRY_GRASS, Material.PASTURE, 0.4)
