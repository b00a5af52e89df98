"""SPIE: spectral priors written as words.

What training and maps use is here; data sets are built by `engine.spie.dataset`, which reads rasters and is not imported by the model.
"""

from engine.spie.errors import InconsistentSample, IndexUnavailable, InvalidBuild, UnusableImagery
from engine.spie.grammar import attributes_text, canonical_answer, canonical_instruction, describe_regions, training_instruction
from engine.spie.indices import compute_index, possible_indices, spectral_index
from engine.spie.morphology import Morphology, clean_mask
from engine.spie.priors import fitted_thresholds, spectral_prior
from engine.spie.regions import Region, find_regions

__all__ = [
    "InconsistentSample",
    "IndexUnavailable",
    "InvalidBuild",
    "Morphology",
    "Region",
    "UnusableImagery",
    "attributes_text",
    "canonical_answer",
    "canonical_instruction",
    "clean_mask",
    "compute_index",
    "describe_regions",
    "find_regions",
    "fitted_thresholds",
    "possible_indices",
    "spectral_index",
    "spectral_prior",
    "training_instruction",
]
