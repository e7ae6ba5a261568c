import pytest

from tests.unit.embed.builders import random_state
from virnucpro.model.config import ModelConfig
from virnucpro.model.loading import build_model


@pytest.fixture(scope="session")
def config():
    return ModelConfig("tiny", layers=3, dim=64, heads=4)


@pytest.fixture(scope="session")
def model(config):
    return build_model(config, random_state(config))
