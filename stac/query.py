"""What is searched: catalog, collection, region, period."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True)
class Query:
    """What is searched."""

    catalog: str
    """STAC API URL, static catalog (path or URL), or item collection (GeoJSON or GeoParquet, path or URL)."""
    collection: str | None
    """None takes all that a static catalog or item collection holds; an API needs a name."""
    region: BaseGeometry
    """Degrees (EPSG:4326), split at the antimeridian."""
    start: datetime
    end: datetime
    """Both aware and inclusive."""
    max_cloud_cover: float | None = None
    """Percent; a scene that does not say passes."""
    exclude: tuple[str, ...] = ()
    """Ids of items that are left out."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with catalog requests, to the catalog's own host only."""
