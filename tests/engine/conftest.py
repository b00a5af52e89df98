"""A SPEX of the shipped design with random weights: what holds for it holds whatever was learnt."""

from __future__ import annotations

import pytest
import torch

from engine.configuration import SpexConfig
from engine.modeling import SpexForLandCover
from engine.processing import SpexProcessor
from engine.spex import Spex
from engine.training.augment import TEN
from engine.training.train import new_processor


@pytest.fixture(scope="session")
def processor() -> SpexProcessor:
    return new_processor(SpexConfig())


@pytest.fixture(scope="session")
def model() -> SpexForLandCover:
    torch.manual_seed(0)
    return SpexForLandCover(SpexConfig(bands=list(TEN), depths=[0, 1, 1, 1, 1])).eval()


@pytest.fixture(scope="session")
def untrained(model: SpexForLandCover, processor: SpexProcessor) -> Spex:
    return Spex(model, processor)
