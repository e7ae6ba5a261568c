import dataclasses

import pytest

from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.report import Packing, PlanReport
from virnucpro.report.cost import START_SECONDS, Workload, cost_lines, estimate_cost, wall_seconds
from virnucpro.report.rates import Estimate

RECORDS = 1000
FILLER = {field.name: 0 for field in dataclasses.fields(Packing)}
PACKING = Packing(
    **{
        **FILLER,
        "batches": 100,
        "items": 300,
        "sequences": 300,
        "sequence_residues": 90_000,
        "truncated_residues": 10_000,
    }
)
REPORTS = 3 * [PlanReport("00000", PlanParameters(4096, 1022), PACKING, [])]
RATE = 409_600.0 / 93  # a shard in 93 s, and its start


def estimate(model="esm2_t33_650M_UR50D", rate=RATE, measured=True):
    return Estimate("imaginary", model, "float16", measured, rate, seconds=0.0)


def cost(*estimates, **options):
    workload = Workload(**{"model": "esm2_t33_650M_UR50D", "dim": 1280, **options})
    return estimate_cost(workload, RECORDS, REPORTS, estimates)


def test_gpu_hours_count_the_start_of_every_job():
    (device,) = cost(estimate()).devices
    assert START_SECONDS == 7
    assert device.gpu_hours == pytest.approx(3 * 100 / 3600, abs=1e-4)
    assert device.wall_seconds == {"1": 300.0, "2": 200.0, "4": 100.0, "8": 100.0}


def test_only_the_chosen_model_is_estimated():
    assert cost(estimate("demo")).devices == []
    assert len(cost(estimate("demo"), estimate()).devices) == 1


def test_output_is_a_vector_a_record_and_disk_holds_each_sequence_once_more():
    found = cost(layers=2, output_dtype="float16")
    vector = 2 * 1280 * 2
    assert found.output_bytes == 1000 * (vector + 200)
    more = 900 * (vector + 35) + 270_000 + 900 * 32
    assert found.disk_bytes == found.output_bytes + more


def test_residues_lie_in_the_shards_and_in_the_file_of_all():
    without, found = cost(), cost(residues=True)
    kept = 3 * 80_000 * 1280 * 4
    assert found.output_bytes == without.output_bytes + kept
    assert found.disk_bytes == without.disk_bytes + 2 * kept


def test_sizes_of_an_unknown_dimension_are_not_guessed():
    found = cost(dim=None)
    assert (found.output_bytes, found.disk_bytes) == (None, None)
    assert cost_lines(found) == [
        "no rate of esm2_t33_650M_UR50D is known yet: `token_budget` measures it"
    ]


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [([5, 5, 5], 1, 15), ([5, 5, 5], 2, 10), ([4, 1, 1, 1, 1], 2, 4), ([3], 8, 3)],
)
def test_each_gpu_takes_the_next_job_as_it_becomes_free(jobs, gpus, expected):
    assert wall_seconds(jobs, gpus) == expected


def test_the_estimate_in_sentences():
    lines = cost_lines(cost(estimate(), estimate(rate=RATE / 100, measured=False)))
    assert lines == [
        "output: 5.3 MB; on the disk at the end, weights and exports apart: 10.3 MB",
        "esm2_t33_650M_UR50D on imaginary, float16 (measured here): 0.083 GPU hours in 3 jobs; "
        "wall time: 1 GPU 5 min, 2 GPUs 3 min, 4 GPUs 2 min, 8 GPUs 2 min",
        "esm2_t33_650M_UR50D on imaginary, float16 (shipped rate): 7.8 GPU hours in 3 jobs; "
        "wall time: 1 GPU 7 h 45 min, 2 GPUs 5 h 10 min, 4 GPUs 2 h 35 min, 8 GPUs 2 h 35 min",
    ]
