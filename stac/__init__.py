"""Catalogs in, catalogs out: search, scenes, sensors, and the documents that a map is published with."""

from stac.errors import CatalogError, SceneRefused, UnknownCollection
from stac.scenes import BandSource, MaskSource, Scene
from stac.search import Query, SearchResult, find_scenes

__all__ = ["BandSource", "CatalogError", "MaskSource", "Query", "Scene", "SceneRefused", "SearchResult", "UnknownCollection", "find_scenes"]
