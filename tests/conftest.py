"""Settings that all tests share."""

import logging
import os

import pytest
import torch
from hypothesis import settings

# A busy machine must not fail a test, and a failure must be the same on every machine.
settings.register_profile("virnucpro", deadline=None, derandomize=True)
settings.load_profile("virnucpro")

# Sums on a CPU may differ in their last bits with the number of threads.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command of the package configures its log; the next test must not see that."""
    package = logging.getLogger("virnucpro")
    before = package.handlers[:], package.level, package.propagate
    yield
    package.handlers[:], package.level, package.propagate = before
