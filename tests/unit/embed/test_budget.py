import json

import pytest
import torch

from virnucpro.embed import budget as budget_module
from virnucpro.embed.budget import measure_budget, read_budget, write_measured_budget
from virnucpro.errors import DataError, InputError, VirnucproError
from virnucpro.files import read_json
from virnucpro.model.weights import fetch_model


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
    assert read_json(cache / "rates.json") == {
        "cpu/demo/float32": pytest.approx(budget.tokens_per_second, abs=0.1)
    }


def test_rates_of_other_devices_stay(demo, tmp_path):
    (tmp_path / "rates.json").write_text('{"GPU/demo/float16": 5}')
    write_measured_budget(
        demo / "w.safetensors",
        demo / "w.json",
        tmp_path / "budget.json",
        device="cpu",
        max_sequence_length=50,
        cache_dir=tmp_path,
    )
    assert set(read_json(tmp_path / "rates.json")) == {"GPU/demo/float16", "cpu/demo/float32"}


@pytest.mark.parametrize(
    ("content", "error"),
    [({"format": 0}, InputError), ({"format": 1, "device": "x"}, DataError), ({}, InputError)],
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

    class attend:
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
        monkeypatch.setattr(budget_module, "_peak_bytes", lambda _m, tokens, _l: tokens * 100_000)

        def rate(_model, tokens, _max_seqlen):
            if tokens not in rates:
                raise torch.cuda.OutOfMemoryError
            return rates[tokens]

        monkeypatch.setattr(budget_module, "_rate", rate)

    return install


RATES = {4096: 80.0, 8192: 97.0, 16384: 99.0, 32768: 100.0, 65536: 96.0}


def measure():
    return measure_budget(CudaModel(), "sha", plan_token_budget=4096, max_seqlen=1024)


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


def test_device_without_memory_for_one_sequence_is_an_error(imaginary_gpu):
    imaginary_gpu(int(1.1 * 1024**3), {})
    with pytest.raises(VirnucproError, match="no memory for steps of 1024 tokens"):
        measure()
