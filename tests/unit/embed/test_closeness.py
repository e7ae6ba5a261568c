import pytest
import torch

from tests.unit.embed.builders import collate, random_sequences, random_state
from virnucpro.embed.closeness import closeness_to_float32
from virnucpro.model.config import ModelConfig
from virnucpro.model.esm2 import PackedESM2

CONFIG = ModelConfig("small", 2, 64, 4)


@pytest.fixture(scope="module")
def exact():
    return PackedESM2.from_state_dict(CONFIG, random_state(CONFIG))


def compare(model, exact, sequences):
    batches = [collate(sequences[:3]), collate(sequences[3:])]
    return closeness_to_float32(model, lambda: exact, batches, [1, 2])


def test_a_model_is_as_close_as_can_be_to_itself(exact):
    assert compare(exact, exact, random_sequences(5)) == {
        "sequences": 5,
        "pooled_cosine_min": 1.0,
        "pooled_cosine_median": 1.0,
        "residue_cosine_min": 1.0,
        "residue_cosine_median": 1.0,
    }


def test_coarse_numbers_show(exact):
    coarse = PackedESM2.from_state_dict(CONFIG, random_state(CONFIG), dtype=torch.bfloat16)
    found = compare(coarse, exact, random_sequences(5))
    assert 0.99 < found["residue_cosine_min"] < found["residue_cosine_median"] < 1
    assert found["pooled_cosine_min"] < 1


def test_one_wrong_sequence_is_the_least(exact):
    class Wrong:
        device = exact.device

        def __call__(self, tokens, positions, bounds, longest, layers):
            hidden = exact(tokens, positions, bounds, longest, layers)
            if len(bounds) == 3:  # the second batch: its first sequence is turned round
                hidden = {k: h.clone() for k, h in hidden.items()}
                hidden[1][: bounds[1]] *= -1
            return hidden

    found = compare(Wrong(), exact, random_sequences(5))
    assert found["pooled_cosine_min"] == -1
    assert found["pooled_cosine_median"] == 1
