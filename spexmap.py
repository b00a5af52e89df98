"""The ground that the rooms stand on: the version and the root of every error.

``stac``, ``engine`` and ``pipeline`` import this module and nothing else of one another, except that ``pipeline`` uses the other two.
"""

__version__ = "0.1.0"


class SpexmapError(Exception):
    """Root of every error that spexmap raises on purpose.

    The message says what is wrong, where, and what to do. Subclasses also inherit the builtin that a caller would catch
    (``ValueError``, ``OSError``, ``KeyError``) where one fits.
    """
