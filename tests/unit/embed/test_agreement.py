import pytest
import torch

from tests.unit.embed.builders import collate, random_sequences, random_state
from virnucpro.embed.agreement import agreement_with_float32
from virnucpro.embed.exact import ExactModel
from virnucpro.embed.receipt import Float32Agreement, Neighbourhood
from virnucpro.model.config import ModelConfig
from virnucpro.model.loading import build_model

CONFIG = ModelConfig("small", 2, 64, 4)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exact():
    return build_model(CONFIG, random_state(CONFIG))


def compare(model, exact, sequences):
    batches = [collate(sequences[:3]), collate(sequences[3:])]
    return agreement_with_float32(model, ExactModel(lambda _: exact, CPU), batches, [1, 2])


def test_a_model_is_as_close_as_can_be_to_itself(exact):
    among = Neighbourhood(5, 1.0, 1.0, 1.0)
    assert compare(exact, exact, random_sequences(5)) == Float32Agreement(
        5, 1.0, 1.0, 1.0, 1.0, among
    )


def test_two_sequences_have_no_neighbourhood(exact):
    found = agreement_with_float32(
        exact, ExactModel(lambda _: exact, CPU), [collate(random_sequences(2))], [1]
    )
    assert found == Float32Agreement(2, 1.0, 1.0, 1.0, 1.0, None)


def test_coarse_numbers_show(exact):
    coarse = build_model(CONFIG, random_state(CONFIG), dtype=torch.bfloat16)
    found = compare(coarse, exact, random_sequences(5))
    assert 0.99 < found.residue_cosine_min < found.residue_cosine_median < 1
    assert found.pooled_cosine_min < 1
    assert found.neighbourhood.centred_cosine_min < found.pooled_cosine_min


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
    assert found.pooled_cosine_min == -1
    assert found.pooled_cosine_median == 1
    assert found.neighbourhood.nearest_kept == 0.8


class Shown:
    """A model whose pooled vectors are given: each sequence is one residue."""

    device = CPU

    def __init__(self, *vectors):
        self.vectors = torch.tensor(vectors)

    def __call__(self, tokens, *_):
        hidden = self.vectors.repeat_interleave(3, dim=0)  # BOS, the residue and EOS
        return {1: hidden}


def test_figures_of_a_neighbourhood_are_those_of_plain_loops():
    generator = torch.Generator().manual_seed(4)
    exact = torch.randn(9, 6, generator=generator) + 20
    ours = exact + 0.3 * torch.randn(9, 6, generator=generator)
    batch = collate([torch.tensor([0, 5, 2])] * 9)
    mine, theirs = (Shown(*x.tolist()) for x in (ours, exact))
    found = agreement_with_float32(mine, ExactModel(lambda _: theirs, CPU), [batch], [1])
    cosine = torch.nn.CosineSimilarity(dim=0)
    mean = exact.mean(0)
    centred = [float(cosine(a - mean, b - mean)) for a, b in zip(ours, exact, strict=True)]

    def nearest(rows):
        return [
            max((j for j in range(9) if j != i), key=lambda j: float(cosine(rows[i], rows[j])))
            for i in range(9)
        ]

    kept = [a == b for a, b in zip(nearest(ours), nearest(exact), strict=True)]
    among = found.neighbourhood
    assert 0 < sum(kept) < 9
    assert found.pooled_cosine_min > 0.999 > min(centred)
    assert among.centred_cosine_min == pytest.approx(min(centred), abs=1e-5)
    assert among.centred_cosine_median == pytest.approx(sorted(centred)[4], abs=1e-5)
    assert among.nearest_kept == pytest.approx(sum(kept) / 9, abs=1e-6)


@pytest.mark.fault(53)
def test_without_memory_for_float32_there_is_no_figure_and_no_error(exact, caplog):
    def load(_device):
        raise MemoryError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    assert agreement_with_float32(exact, ExactModel(load, CPU), [], [1]) is None
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
