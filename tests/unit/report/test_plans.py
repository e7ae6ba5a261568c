import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import Sample
from virnucpro.errors import DataError, InputError
from virnucpro.report.cost import Workload
from virnucpro.report.plans import plans_report
from virnucpro.report.rates import SHIPPED_RATES


def plans(sample: Sample, **options: Any) -> dict[str, Any]:
    return plans_report(
        sample.shards_dir,
        sample.plans_dir,
        sample.root / "plans.json",
        sample.root / "plans.tsv",
        **options,
    ).as_json()


def keep_rates(cache: Path, rates: dict[str, Any]) -> None:
    (cache / "rates").mkdir()
    for number, (key, rate) in enumerate(rates.items()):
        entry = {"rate_of": key, "tokens_per_second": rate}
        (cache / "rates" / f"{number}.json").write_text(json.dumps(entry))


def cost(residues: bytes, limit: int) -> int:
    return min(len(residues), limit) + 2


def test_totals_are_the_sums_of_the_shards(sample: Sample) -> None:
    report = plans(sample, records=sample.records)
    distinct = {residues for *_, residues in sample.records_in}
    totals = report["totals"]
    assert totals["sequences"] == len(distinct)
    assert totals["tokens"] == sum(cost(residues, 20) for residues in distinct)
    assert totals["batches"] == sum(shard["batches"] for shard in report["shards"])
    assert totals["batches"] >= totals["lower_bound"]
    assert totals["efficiency"] == pytest.approx(totals["tokens"] / (64 * totals["batches"]), 1e-5)
    next_fit = totals["alternatives"]["next_fit_decreasing"]
    assert next_fit["computed_tokens"] == 64 * next_fit["batches"]
    assert report["duplicates"]["records"] == 50 - len(distinct)
    every = sum(cost(residues, 20) for *_, residues in sample.records_in)
    assert report["duplicates"]["tokens_saved"] == every - totals["tokens"]
    assert json.loads((sample.root / "plans.json").read_text()) == report


def test_table_ends_with_the_total(sample: Sample) -> None:
    report = plans(sample)
    with (sample.root / "plans.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["shard"] for row in rows] == [*sample.names, "total"]
    assert int(rows[-1]["tokens"]) == sum(int(row["tokens"]) for row in rows[:-1])
    assert float(rows[-1]["efficiency"]) == report["totals"]["efficiency"]
    assert None not in {cell for row in rows for cell in row.values()}


def test_time_is_estimated_for_every_device_that_was_measured(sample: Sample) -> None:
    cache = sample.root / "cache"
    shipped = plans(sample, cache_dir=cache)["estimates"]
    assert [f"{e['device']}/{e['model']}/{e['dtype']}" for e in shipped] == sorted(SHIPPED_RATES)
    assert not any(estimate["measured_here"] for estimate in shipped)
    cache.mkdir()
    rates = {"cpu/demo/float32": 100.0, "NVIDIA H100/models/my/esm2.pt/float16": 1000}
    keep_rates(cache, rates)
    report = plans(sample, cache_dir=cache)
    computed = report["totals"]["computed_tokens"]
    assert [e for e in report["estimates"] if not e["measured_here"]] == shipped
    assert [e for e in report["estimates"] if e["measured_here"]] == [
        {
            "device": "NVIDIA H100",
            "model": "models/my/esm2.pt",
            "dtype": "float16",
            "measured_here": True,
            "tokens_per_second": 1000,
            "seconds": round(computed / 1000, 1),
        },
        {
            "device": "cpu",
            "model": "demo",
            "dtype": "float32",
            "measured_here": True,
            "tokens_per_second": 100.0,
            "seconds": round(computed / 100, 1),
        },
    ]


def test_rate_measured_here_takes_the_place_of_the_shipped_one(sample: Sample) -> None:
    key = next(iter(SHIPPED_RATES))
    keep_rates(sample.root, {key: 7})
    estimates = plans(sample, cache_dir=sample.root)["estimates"]
    assert len(estimates) == len(SHIPPED_RATES)
    assert [e["tokens_per_second"] for e in estimates if e["measured_here"]] == [7]


@pytest.mark.fault(54)
@pytest.mark.parametrize("rate", [0, -1, "fast", None])
def test_damaged_rate_is_left_out(sample: Sample, rate: object) -> None:
    keep_rates(sample.root, {"cpu/demo/float32": rate})
    estimates = plans(sample, cache_dir=sample.root)["estimates"]
    assert not any(estimate["measured_here"] for estimate in estimates)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": 0}, InputError, "plan report has format 0"),
        ({"shard": "00000"}, DataError, "is of shard 00000, .*expected shard 00001"),
        ({"sequences": 999}, DataError, "is of shard 00001, 999 sequences"),
        ({"token_budget": 65}, DataError, "is of .*token_budget 65"),
        ({"tokens": None}, DataError, "has no packing.tokens"),
    ],
)
def test_plan_report_of_another_run_is_refused(
    sample: Sample, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = sample.plans_dir / "00001.json"
    report = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in report.items() if value is not None}))
    with pytest.raises(error, match=message):
        plans(sample)


def test_missing_plan_report_is_listed(sample: Sample) -> None:
    (sample.plans_dir / "00002.json").unlink()
    with pytest.raises(DataError, match=r"1 missing: 00002\.json"):
        plans(sample)


def test_plans_of_a_known_model_say_what_it_costs(sample: Sample) -> None:
    report = plans(sample, workload=Workload("esm2_t33_650M_UR50D", 1280))
    assert report["cost"]["jobs"] == len(sample.names)
    assert [entry["device"] for entry in report["cost"]["devices"]] == ["NVIDIA H100 80GB HBM3"]
    assert "cost" not in plans(sample)
