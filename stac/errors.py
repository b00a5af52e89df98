"""Errors of the catalog room."""

from spexmap import SpexmapError


class CatalogError(SpexmapError, OSError):
    """A catalog could not be read: not found, not STAC, or a server that kept failing."""


class CatalogMissing(CatalogError):
    """A document that a catalog names is not there: a plain no, not a server that failed."""


class CatalogLinkBroken(CatalogError):
    """A link of a catalog can name no document: it is neither URL nor path, or names what is no file."""


class CatalogNotJson(CatalogError):
    """A document that a catalog names is there and is not JSON."""


class SceneRefused(SpexmapError, ValueError):
    """An item that cannot become a scene; the message says which item and why."""


class UnknownCollection(SpexmapError, ValueError):
    """The catalog does not hold the collection that the job names."""
