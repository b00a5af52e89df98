"""SPEX: from spectra to masks and words. ``Spex.load(...).segment(...)`` is the way in."""

from engine.errors import InvalidReflectance, ModelNotFound, UnknownBand, UnknownClass
from engine.spex import ClassQuery, Segmentation, Spex

__all__ = ["ClassQuery", "InvalidReflectance", "ModelNotFound", "Segmentation", "Spex", "UnknownBand", "UnknownClass"]
