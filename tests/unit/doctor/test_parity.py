"""The comparison of a model with itself, packed and alone."""

import torch

from tests.unit.embed.builders import random_state
from virnucpro.doctor.parity import compare_packed
from virnucpro.model.attention import SequenceAttention
from virnucpro.model.config import ModelConfig
from virnucpro.model.loading import build_model

CONFIG = ModelConfig("demo", 2, 64, 4)


def test_a_model_that_keeps_sequences_apart_holds():
    assert compare_packed(build_model(CONFIG, random_state(CONFIG))).holds


def test_one_that_mixes_them_does_not(monkeypatch):
    attend = SequenceAttention.__call__

    def across(self, qkv, segments):
        return attend(self, qkv, (segments[0], [(0, len(qkv))]))

    monkeypatch.setattr(SequenceAttention, "__call__", across)
    found = compare_packed(build_model(CONFIG, random_state(CONFIG, seed=1), dtype=torch.float32))
    assert not found.holds
