"""Errors of SPIE."""

from spexmap import SpexmapError


class IndexUnavailable(SpexmapError, ValueError):
    """A spectral index that was asked for by name and that the band set, or what is known of its constants, cannot give."""


class UnusableImagery(SpexmapError, ValueError):
    """Imagery, labels or cloud masks that cannot be read as what they were said to be: bands, scale, grid, codes."""


class InvalidBuild(SpexmapError, ValueError):
    """Options of a data set that contradict one another, or an output folder that is taken."""


class InconsistentSample(SpexmapError, ValueError):
    """A sample whose text, mask, attributes or source disagree."""
