"""What stores have of a sample, in the report on its plans."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.samples import Sample
from tests.unit.store.stores import make_request
from virnucpro.plan.plan import read_plan
from virnucpro.report.cost import START_SECONDS
from virnucpro.report.known import StoreLookup, known_lines
from virnucpro.report.plans import PlansReport, plans_report
from virnucpro.store.request import Request
from virnucpro.store.store import Store

REQUEST = make_request(max_sequence_length=20)
MODEL = "esm2_t33_650M_UR50D"
ASKED = {
    "model": "demo",
    "layers": (-1,),
    "last_layer": 6,
    "pooling": "mean",
    "pseudo_perplexity": "none",
    "compute_dtype": None,
    "output_dtype": "float32",
}


def report(sample: Sample, store: Path, **changes: Any) -> PlansReport:
    return plans_report(
        *(sample.shards_dir, sample.plans_dir, sample.root / "p.json", sample.root / "p.tsv"),
        lookup=StoreLookup(Store([store]), **(ASKED | changes)),
    )


def fill(store: Path, sample: Sample, shards: list[int], request: Request = REQUEST) -> int:
    """Let a store know all sequences of some shards, and the first half of the next one's."""
    keys = [
        read_plan(sample.plans_dir / f"{sample.names[n]}.parquet").sequence_keys for n in shards
    ]
    keys[-1] = keys[-1][: len(keys[-1]) // 2]
    for part in keys:
        Store([store]).add(request, part, {"embeddings": np.ones((len(part), 1, 4), np.float32)})
    return sum(map(len, keys))


def test_known_sequences_are_counted_and_the_rest_is_packed(sample: Sample, tmp_path: Path) -> None:
    count = fill(tmp_path / "store", sample, [0, 2, 3])
    (known,) = report(sample, tmp_path / "store").known
    assert (known.request, known.sequences, known.bytes) == (REQUEST.id, count, 16 * count)
    assert known.of == sum(map(len, sample.members))
    half = len(sample.members[3]) // 2
    left = [*sample.members[1], *sample.members[3][half:]]
    assert known.tokens_left == sum(min(len(residues), 20) + 2 for residues in left)
    assert known.jobs_left == 2
    assert known.computed_tokens_left % 64 == 0
    assert known.tokens_left <= known.computed_tokens_left < 2 * known.tokens_left


def test_the_report_on_plans_is_the_same_beside_what_is_known(
    sample: Sample, tmp_path: Path
) -> None:
    fill(tmp_path / "store", sample, [0, 1])
    found = report(sample, tmp_path / "store").as_json()
    assert [entry["sequences"] for entry in found.pop("known")] != [0]
    without = plans_report(
        sample.shards_dir, sample.plans_dir, tmp_path / "p.json", tmp_path / "p.tsv"
    )
    assert found == without.as_json()


def test_each_request_that_a_run_may_have_is_counted_the_largest_first(
    sample: Sample, tmp_path: Path
) -> None:
    gpu = dataclasses.replace(REQUEST, device="NVIDIA H100", compute_dtype="float16")
    fill(tmp_path / "store", sample, [0, 1], gpu)
    fill(tmp_path / "store", sample, [0, 1, 2])
    for other in ({"pooling": "max"}, {"engine": 0}, {"layers": [5]}, {"window_overlap": 2}):
        fill(tmp_path / "store", sample, [0, 1, 2, 3], dataclasses.replace(REQUEST, **other))
    found = report(sample, tmp_path / "store").known
    assert [one.request for one in found] == [REQUEST.id, gpu.id]
    found = report(sample, tmp_path / "store", compute_dtype="float16").known
    assert [one.request for one in found] == [gpu.id]
    found = report(sample, tmp_path / "store", layers=(6,), last_layer=None).known
    assert [one.request for one in found] == [REQUEST.id, gpu.id]


@pytest.mark.parametrize("store", ["empty", "of residues"])
def test_where_nothing_is_known_that_is_said(sample: Sample, tmp_path: Path, store: str) -> None:
    changes = {}
    if store == "of residues":
        kept = dataclasses.replace(REQUEST, pooling="none")
        fill(tmp_path / "store", sample, [0, 1], kept)
        changes["pooling"] = "none"
    found = report(sample, tmp_path / "store", **changes).known
    assert found == []
    assert known_lines(found) == ["the store has no rows of this model and configuration"]
    assert known_lines(None) == []


def test_the_gpu_hours_that_are_left_are_those_of_the_jobs_that_are_left(
    sample: Sample, tmp_path: Path
) -> None:
    request = dataclasses.replace(REQUEST, model=MODEL, layers=[33])
    fill(tmp_path / "store", sample, [0, 1, 2, 3], request)
    (known,) = report(sample, tmp_path / "store", model=MODEL, last_layer=33).known
    assert known.jobs_left == 1
    (device,) = known.devices
    assert device.gpu_hours == pytest.approx(START_SECONDS / 3600, abs=1e-4)
    (line,) = known_lines([known])
    assert f"{known.sequences} of {known.of} sequences; 1 job is left, " in line
    assert "0.0019 GPU hours on NVIDIA H100" in line
    done = dataclasses.replace(known, jobs_left=0)
    assert known_lines([done])[0].endswith("no job is left")
