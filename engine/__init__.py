"""SPEX: from spectra to masks and words. ``Spex.load(...).segment(...)`` is the way in.

The model and PyTorch are loaded when `Spex` is first asked for: most processes of a run only count, write and publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.description import ClassQuery
from engine.errors import InvalidReflectance, ModelNotFound, UnknownBand, UnknownClass

if TYPE_CHECKING:
    from engine.spex import Segmentation, Spex

__all__ = ["ClassQuery", "InvalidReflectance", "ModelNotFound", "Segmentation", "Spex", "UnknownBand", "UnknownClass"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine import spex

    return getattr(spex, name)
