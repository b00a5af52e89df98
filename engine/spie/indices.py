"""Spectral indices by spyndex, for whatever bands a sensor has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bands import band, channel_of
from engine.spie.errors import IndexUnavailable

SPYNDEX_BANDS = {
    "A": "coastal",
    "B": "blue",
    "G": "green",
    "R": "red",
    "RE1": "rededge071",
    "RE2": "rededge075",
    "RE3": "rededge078",
    "N": "nir",
    "N2": "nir08",
    "WV": "nir09",
    "S1": "swir16",
    "S2": "swir22",
}
"""Canonical band of each letter that spyndex uses in formulas."""

ALIASES = {"BSI": "BI", "NDRE": "NDREI"}
"""Usual names of indices that spyndex lists under another one: the bare soil index and the normalised difference red edge."""

REFLECTANCE_FLOOR = 1e-3
"""Reflectance below this counts as this, which keeps ratios finite over dark water."""

DEFAULT_INDICES = ("NDVI", "NDWI", "MNDWI", "NDBI", "BSI", "NDRE", "NDMI", "NGRDI")
"""What a data set reports of its masks where nothing else is asked, as far as the bands go."""

_NANOMETRES = 1000.0


@dataclass(frozen=True)
class IndexChoice:
    """Which of the indices asked for a band set offers."""

    used: tuple[str, ...]
    left_out: Mapping[str, str]
    """Reason by index."""


@cache
def _spyndex() -> Any:
    """spyndex, loaded when an index is first asked for: most processes of a run ask for none."""
    import spyndex

    return spyndex


def compute_index(
    name: str, reflectance: NDArray[np.floating], bands: Sequence[str], constants: Mapping[str, float] | None = None
) -> NDArray[np.float32]:
    """Return an index of a chip, (H, W) float32, NaN where a band has no data or the formula has no finite value.

    Parameters
    ----------
    name
        Name in spyndex's catalogue, or one of `ALIASES`.
    reflectance
        (C, H, W) surface reflectance 0..1, NaN = no data. Values below 0.001 count as 0.001, which keeps ratios finite.
    bands
        Canonical names of the C channels.
    constants
        Constants of the formula that differ from spyndex' defaults (``L``, ``g``, ``C1`` ...). Wavelengths are those of `engine.bands` in nanometres.

    Raises
    ------
    IndexUnavailable
        The name is unknown, or a band or a constant is missing; names the bands and what would be possible.
    """
    reason = why_unavailable(name, bands, constants)
    if reason:
        raise IndexUnavailable(f"{reason}; possible with {', '.join(bands) or 'no band'}: {_listed(possible_indices(bands))}")
    official = ALIASES.get(name, name)
    parameters = {letter: _parameter(letter, reflectance, bands, constants or {}) for letter in _spyndex().indices[official].bands}
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = np.asarray(_spyndex().computeIndex([official], parameters), np.float32).reshape(reflectance.shape[1:])
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def spectral_index(name: str, reflectance: NDArray[np.floating], bands: Sequence[str]) -> NDArray[np.float32] | None:
    """Return an index as `compute_index` does, or None where the band set lacks what it needs."""
    return compute_index(name, reflectance, bands) if available(name, bands) else None


def _parameter(letter: str, reflectance: NDArray[np.floating], bands: Sequence[str], constants: Mapping[str, float]) -> NDArray[np.float32] | float:
    if letter in SPYNDEX_BANDS:
        return np.maximum(np.asarray(reflectance[channel_of(SPYNDEX_BANDS[letter], bands)], np.float32), np.float32(REFLECTANCE_FLOOR))
    value = _constant(letter, constants)
    assert value is not None
    return value


def _constant(letter: str, constants: Mapping[str, float]) -> float | None:
    """Return a constant as given, as spyndex has it, or a wavelength in nanometres; None where nothing says it."""
    if letter in constants:
        return float(constants[letter])
    if letter.startswith("lambda") and letter.removeprefix("lambda") in SPYNDEX_BANDS:
        return band(SPYNDEX_BANDS[letter.removeprefix("lambda")]).centre * _NANOMETRES
    default = _spyndex().constants[letter].default if letter in _spyndex().constants else None
    return None if default is None else float(default)


def index_bands(name: str) -> tuple[str, ...]:
    """Return the canonical bands that an index needs; raises `IndexUnavailable` for a name that spyndex does not have."""
    official = ALIASES.get(name, name)
    if official not in _spyndex().indices:
        near = get_close_matches(name, [*_spyndex().indices, *ALIASES], n=3, cutoff=0.5)
        raise IndexUnavailable(f"index {name!r} is not in the catalogue of spyndex; nearest: {', '.join(near) or 'none'}")
    return tuple(SPYNDEX_BANDS[letter] for letter in _spyndex().indices[official].bands if letter in SPYNDEX_BANDS)


def missing_bands(name: str, bands: Sequence[str]) -> tuple[str, ...]:
    """Return the bands that an index needs and the band set has not; one channel plays one role."""
    taken: dict[int, str] = {}
    missing = []
    for needed in index_bands(name):
        channel = channel_of(needed, bands)
        if channel is None or taken.setdefault(channel, needed) != needed:
            missing.append(needed)
    return tuple(missing)


def why_unavailable(name: str, bands: Sequence[str], constants: Mapping[str, float] | None = None) -> str:
    """Return why a band set does not offer an index, an empty text where it does; raises `IndexUnavailable` for an unknown name."""
    lacking = missing_bands(name, bands)
    if lacking:
        return f"index {name} needs {' and '.join(lacking)}, not among the bands"
    letters = _spyndex().indices[ALIASES.get(name, name)].bands
    unknown = [letter for letter in letters if letter not in SPYNDEX_BANDS and _constant(letter, constants or {}) is None]
    return f"index {name} needs {' and '.join(unknown)}, for which there is neither a band nor a default" if unknown else ""


def available(name: str, bands: Sequence[str]) -> bool:
    """Return whether the band set offers what an index needs."""
    return not why_unavailable(name, bands)


def possible_indices(bands: Sequence[str]) -> tuple[str, ...]:
    """Return all indices that a band set offers, the common ones of `DEFAULT_INDICES` first, then spyndex' in order of name."""
    others = sorted(set(_spyndex().indices) - set(DEFAULT_INDICES))
    return tuple(name for name in (*DEFAULT_INDICES, *others) if available(name, bands))


def choose_indices(names: Sequence[str], bands: Sequence[str]) -> IndexChoice:
    """Return which of optional indices a band set offers, and why not the others."""
    reasons = {name: why_unavailable(name, bands) for name in names}
    return IndexChoice(tuple(name for name in names if not reasons[name]), {name: reason for name, reason in reasons.items() if reason})


def require_indices(names: Sequence[str], bands: Sequence[str]) -> IndexChoice:
    """Return indices that were asked for by name; raises `IndexUnavailable` with all that are missing and with those that are possible."""
    choice = choose_indices(names, bands)
    if choice.left_out:
        raise IndexUnavailable(f"{'; '.join(choice.left_out.values())}; possible with {', '.join(bands)}: {_listed(possible_indices(bands))}")
    return choice


def _listed(names: Sequence[str], longest: int = 12) -> str:
    more = len(names) - longest
    return (", ".join(names[:longest]) or "none") + (f" and {more} more" if more > 0 else "")


def mean_over(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float | None:
    """Return the mean of an index over the finite pixels of a mask, None where there are none."""
    chosen = values[mask & np.isfinite(values)]
    mean = float(chosen.mean(dtype=np.float64)) if chosen.size else math.nan
    return mean if math.isfinite(mean) else None
