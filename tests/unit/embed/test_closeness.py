import pytest
import torch

from tests.unit.embed.builders import collate, random_sequences, random_state
from virnucpro.embed.closeness import closeness_to_float32
from virnucpro.embed.exact import ExactModel
from virnucpro.model.config import ModelConfig
from virnucpro.model.loading import build_model

CONFIG = ModelConfig("small", 2, 64, 4)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exact():
    return build_model(CONFIG, random_state(CONFIG))


def compare(model, exact, sequences):
    batches = [collate(sequences[:3]), collate(sequences[3:])]
    return closeness_to_float32(model, ExactModel(lambda _: exact, CPU), batches, [1, 2])


def test_a_model_is_as_close_as_can_be_to_itself(exact):
    assert compare(exact, exact, random_sequences(5)) == {
        "sequences": 5,
        "pooled_cosine_min": 1.0,
        "pooled_cosine_median": 1.0,
        "residue_cosine_min": 1.0,
        "residue_cosine_median": 1.0,
    }


def test_coarse_numbers_show(exact):
    coarse = build_model(CONFIG, random_state(CONFIG), dtype=torch.bfloat16)
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


@pytest.mark.fault(53)
def test_without_memory_for_float32_there_is_no_figure_and_no_error(exact, caplog):
    def load(_device):
        raise MemoryError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    assert closeness_to_float32(exact, ExactModel(load, CPU), [], [1]) is None
    assert "no memory for float32 on cpu, going on without it" in caplog.text


@pytest.mark.fault(53)
def test_float32_that_does_not_fit_beside_the_model_runs_on_the_cpu(monkeypatch):
    tried = []

    def load(device):
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return "model"

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    exact = ExactModel(load, torch.device("cuda", 0))
    assert exact.run(lambda model: model * 2) == "modelmodel"
    assert exact.run(lambda model: model) == "model"
    assert tried == ["cuda", "cpu"]
    with pytest.raises(RuntimeError, match="illegal"):
        exact.run(lambda _: (_ for _ in ()).throw(RuntimeError("CUDA error: illegal access")))
