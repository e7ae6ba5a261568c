"""The measured token budget on a real CUDA device. Run with ``pytest -m gpu``."""

import pytest
import torch

from tests.unit.embed.builders import random_state
from virnucpro.embed.measure import _peak_bytes, measure_budget
from virnucpro.embed.readout import Readout
from virnucpro.model.config import KNOWN_MODELS
from virnucpro.model.loading import build_model

pytestmark = pytest.mark.gpu


def test_measured_bytes_per_token_predict_the_memory_of_a_large_step():
    config = KNOWN_MODELS["esm2_t12_35M_UR50D"]
    model = build_model(config, random_state(config), dtype=torch.float16, device="cuda")
    readout = Readout([model.config.layers])
    budget = measure_budget(model, "sha", readout, plan_token_budget=4096, max_seqlen=1024)
    assert budget.device == torch.cuda.get_device_name()
    assert budget.tokens_per_step % 4096 == 0
    assert budget.bytes_per_token * 65536 == pytest.approx(
        _peak_bytes(model, readout, 65536, 1024), rel=0.25
    )
    assert max(budget.rates.values()) * 0.98 <= budget.tokens_per_second
