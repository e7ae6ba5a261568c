"""Settings that all tests share."""

import os

import torch
from hypothesis import settings

# A busy machine must not fail a test, and a failure must be the same on every machine.
settings.register_profile("virnucpro", deadline=None, derandomize=True)
settings.load_profile("virnucpro")

# Sums on a CPU may differ in their last bits with the number of threads.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
