import json

import pytest
import torch

from virnucpro.embed import measure as measure_module
from virnucpro.embed.budget import read_budget
from virnucpro.embed.engine import Engine
from virnucpro.embed.measure import measure_budget, write_measured_budget
from virnucpro.embed.rates import record_rate
from virnucpro.embed.readout import Readout
from virnucpro.errors import DataError, InputError, VirnucproError
from virnucpro.model.weights import fetch_model
from virnucpro.report.rates import estimate_seconds


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    fetch_model("demo", folder / "w.safetensors", folder / "w.json")
    return folder


def test_budget_on_a_cpu_is_the_plans_and_its_rate_is_kept(demo, tmp_path):
    out, cache = tmp_path / "budget.json", tmp_path / "cache"
    budget = write_measured_budget(
        demo / "w.safetensors",
        demo / "w.json",
        out,
        device="cpu",
        plan_token_budget=2048,
        max_sequence_length=100,
        cache_dir=cache,
    )
    assert budget == read_budget(out)
    assert (budget.tokens_per_step, budget.device, budget.dtype) == (2048, "cpu", "float32")
    assert budget.backend == "sdpa"
    (here,) = [each for each in estimate_seconds(1000, cache) if each.measured_here]
    assert (here.device, here.model, here.dtype) == ("cpu", "demo", "float32")
    assert here.tokens_per_second == pytest.approx(budget.tokens_per_second, abs=0.1)


@pytest.mark.fault(54)
def test_rates_are_kept_side_by_side_and_a_damaged_one_costs_only_itself(tmp_path, caplog):
    record_rate(tmp_path, "GPU", "demo", "float16", 5.0)
    record_rate(tmp_path, "cpu", "demo", "float32", 7.0)
    for path in (tmp_path / "rates").iterdir():
        if "GPU" in path.read_text():
            path.write_text('{"rate_of": "GPU')
    assert [e.device for e in estimate_seconds(1, tmp_path) if e.measured_here] == ["cpu"]
    assert "left out of the estimates" in caplog.text


@pytest.mark.fault(54)
def test_a_rate_that_cannot_be_kept_is_warned_of_and_the_budget_is_written(demo, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where a folder is needed")
    write_measured_budget(
        demo / "w.safetensors",
        demo / "w.json",
        tmp_path / "budget.json",
        device="cpu",
        max_sequence_length=50,
        cache_dir=tmp_path / "cache",
    )
    assert "cannot be kept" in caplog.text
    assert read_budget(tmp_path / "budget.json").model == "demo"


@pytest.mark.fault(52)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": [33]}, "layer 33"),
        ({"layers": [-1, 6]}, "asked for twice"),
        ({"layers": [-8]}, "layer -8"),
        ({"pooling": "median"}, "unknown pooling"),
    ],
)
def test_what_the_model_cannot_give_is_refused_before_it_is_loaded(demo, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        write_measured_budget(
            tmp_path / "no weights",
            demo / "w.json",
            tmp_path / "budget.json",
            device="cpu",
            **wrong,
        )


def test_the_steps_that_are_tried_give_what_the_jobs_will_give(demo, tmp_path, monkeypatch):
    tried = []
    forward = Engine.forward

    def spy(self, *arguments):
        tried.append(self.readout)
        return forward(self, *arguments)

    monkeypatch.setattr(Engine, "forward", spy)
    budget = write_measured_budget(
        demo / "w.safetensors",
        demo / "w.json",
        tmp_path / "budget.json",
        device="cpu",
        max_sequence_length=50,
        layers=[-1, 2],
        pooling="none",
        pseudo_perplexity="one-pass",
        output_dtype="float16",
    )
    assert set(map(repr, tried)) == {repr(Readout([6, 2], "none", torch.float16, True))}
    assert budget.readout == tried[0].facts()


@pytest.mark.parametrize(
    ("content", "error"),
    [({"format": 0}, InputError), ({"format": 2, "device": "x"}, DataError), ({}, InputError)],
)
def test_files_that_are_not_a_budget_are_refused(tmp_path, content, error):
    path = tmp_path / "budget.json"
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=r"budget\.json"):
        read_budget(path)


class CudaModel:
    """What `measure_budget` sees of a model on a CUDA device that is not there."""

    class config:
        name, layers = "imaginary", 1

    class backend:
        name = "varlen"

    device = torch.device("cuda", 0)
    dtype, precision = torch.float16, "float16"


@pytest.fixture
def imaginary_gpu(monkeypatch):
    """A device of 16 GB of which `free` is free; a token takes 100 kB; rates are made up."""

    def install(free, rates):
        class Properties:
            total_memory = 16 * 1024**3

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Imaginary")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 16 * 1024**3))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(
            measure_module, "_peak_bytes", lambda _m, _r, tokens, _l: tokens * 100_000
        )

        def rate(_model, _readout, tokens, _max_seqlen):
            if tokens not in rates:
                raise torch.cuda.OutOfMemoryError
            return rates[tokens]

        monkeypatch.setattr(measure_module, "_rate", rate)

    return install


RATES = {4096: 80.0, 8192: 97.0, 16384: 99.0, 32768: 100.0, 65536: 96.0}


def measure(plan_token_budget=4096):
    options = {"plan_token_budget": plan_token_budget, "max_seqlen": 1024}
    return measure_budget(CudaModel(), "sha", Readout([1]), **options)


def test_smallest_step_within_two_percent_of_the_best_is_chosen(imaginary_gpu):
    imaginary_gpu(14 * 1024**3, RATES)
    budget = measure()
    assert budget.tokens_per_step == 16384
    assert budget.tokens_per_second == 99.0
    assert budget.bytes_per_token == 100_000


def test_memory_limits_the_sizes_that_are_tried(imaginary_gpu):
    imaginary_gpu(2 * 1024**3, RATES)  # less the margin: 12,000 tokens
    assert measure().tokens_per_step == 8192


def test_out_of_memory_while_timing_keeps_the_sizes_that_fit(imaginary_gpu):
    imaginary_gpu(14 * 1024**3, {4096: 80.0, 8192: 97.0})
    assert measure().tokens_per_step == 8192


def test_device_too_small_for_a_planned_batch_gets_a_smaller_budget(imaginary_gpu):
    imaginary_gpu(int(1.1 * 1024**3), {1024: 10.0})
    assert measure().tokens_per_step == 1024


def test_a_planned_batch_of_little_more_than_one_sequence_leaves_room_for_a_try(imaginary_gpu):
    imaginary_gpu(int(1.1 * 1024**3), {1024: 10.0})
    assert measure(plan_token_budget=1500).tokens_per_step == 1024


def test_device_without_memory_for_one_sequence_is_an_error(imaginary_gpu):
    imaginary_gpu(int(1.1 * 1024**3), {})
    with pytest.raises(VirnucproError, match="no memory for steps of 1024 tokens"):
        measure()
