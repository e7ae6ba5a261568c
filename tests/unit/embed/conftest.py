import pytest

from tests.unit.embed.builders import random_state
from virnucpro.model.config import ModelConfig
from virnucpro.model.esm2 import PackedESM2


@pytest.fixture(scope="session")
def config():
    return ModelConfig("tiny", layers=3, dim=64, heads=4)


@pytest.fixture(scope="session")
def model(config):
    return PackedESM2.from_state_dict(config, random_state(config))
