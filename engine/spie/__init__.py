"""SPIE: spectral priors written as words. Attributes come from the bands of the chip, never from labels."""

from engine.spie.grammar import attributes_text, canonical_answer, canonical_instruction, describe_regions, training_instruction
from engine.spie.indices import spectral_index, spectral_prior
from engine.spie.regions import Region, find_regions

__all__ = [
    "Region",
    "attributes_text",
    "canonical_answer",
    "canonical_instruction",
    "describe_regions",
    "find_regions",
    "spectral_index",
    "spectral_prior",
    "training_instruction",
]
