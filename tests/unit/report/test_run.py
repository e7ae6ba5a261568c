import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.samples import TRACE, Sample, trace_line
from virnucpro.errors import DataError, InputError
from virnucpro.report.content import RunReport
from virnucpro.report.cost import Workload
from virnucpro.report.plans import plans_report
from virnucpro.report.rates import SHIPPED_RATES
from virnucpro.report.run import run_report


def plans(sample: Sample, **options: Any) -> dict[str, Any]:
    return plans_report(
        sample.shards_dir,
        sample.plans_dir,
        sample.root / "plans.json",
        sample.root / "plans.tsv",
        **options,
    ).as_json()


def run(sample: Sample, **options: Any) -> dict[str, Any]:
    return report_of(sample, **options).as_json()


def report_of(sample: Sample, **options: Any) -> RunReport:
    return run_report(
        shards_dir=sample.shards_dir,
        plans_dir=sample.plans_dir,
        embeddings_dir=sample.embeddings_dir,
        records=sample.records,
        quarantine=sample.quarantine,
        json_path=sample.root / "run.json",
        tsv_path=sample.root / "run.tsv",
        report_dir=sample.root / "report",
        **options,
    )


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
        ({"token_budget": 65}, DataError, "is of .*token_budget=65"),
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


def test_run_report_accounts_for_every_record(sample: Sample) -> None:
    counts = sample.merge()
    ledger = run(sample)["ledger"]
    assert ledger["read"] == 52
    assert ledger["embedded"] == counts.embedded
    assert ledger["quarantined"] == counts.quarantined
    lost = {residues: reason for residues, (reason, _) in sample.failed.items()}
    expected = {"empty": 2}
    for *_, residues in sample.records_in:
        if residues in lost:
            expected[lost[residues]] = expected.get(lost[residues], 0) + 1
    assert ledger["quarantined_by_reason"] == expected
    assert ledger["truncated"] == sum(len(residues) > 20 for *_, residues in sample.records_in)


def test_run_report_sets_achieved_beside_planned(sample: Sample) -> None:
    sample.merge()
    report = run(sample)
    measured = report["measured"]
    steps = sum(shard["batches"] for shard in report["shards"])
    assert measured["steps"] == steps
    assert measured["tokens"] == sum(shard["tokens"] for shard in measured["shards"])
    rate = measured["tokens"] / measured["seconds"]
    assert measured["tokens_per_second"] == pytest.approx(rate, 1e-2)
    assert measured["filled"] == pytest.approx(measured["tokens"] / (64 * steps), 1e-5)
    assert measured["peak_memory_bytes"] >= 1000
    assert report["planned"]["tokens"] == plans(sample)["totals"]["tokens"]
    assert report["execution"]["differing"] == []
    with (sample.root / "run.tsv").open(newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["shard"] for row in rows] == [*sample.names, "total"]
    assert int(rows[-1]["tokens"]) == report["planned"]["tokens"]
    assert int(rows[-1]["steps"]) == steps


def test_demo_run_warns_in_report_and_log(sample: Sample, caplog: pytest.LogCaptureFixture) -> None:
    sample.merge()
    caplog.clear()
    assert "no biology" in run(sample)["notice"]
    assert "no biology" in caplog.text


def test_run_of_a_real_model_carries_no_notice(make_sample, caplog) -> None:
    sample = make_sample([("a", "", b"MK")], receipt={"demo": False, "model": "esm2_t6_8M_UR50D"})
    sample.merge()
    assert run(sample)["notice"] is None
    assert "no biology" not in caplog.text


def test_shards_that_ran_differently_are_named(sample: Sample) -> None:
    sample.merge()
    sample.change_receipt("00001", tokens_per_step=128, device="NVIDIA H100")
    execution = run(sample)["execution"]
    assert execution["differing"] == ["device", "tokens_per_step"]
    assert execution["shards"][1]["tokens_per_step"] == 128


def test_all_but_the_measured_part_is_the_same_for_other_times(sample: Sample) -> None:
    sample.merge()
    first = run(sample)
    figure = (sample.root / "report" / "length_distribution.svg").read_bytes()
    trace = sample.embeddings_dir / "00000.trace.tsv"
    lines = [line.split("\t")[:-1] for line in trace.read_text().splitlines()[1:]]
    other = (trace_line(*cells[:3], cells[3].replace("0.", "7."), *cells[4:]) for cells in lines)
    trace.write_text(TRACE + "".join(other))
    second = run(sample)
    assert first.pop("measured") != second.pop("measured")
    assert first == second
    assert (sample.root / "report" / "length_distribution.svg").read_bytes() == figure


def test_report_of_records_that_do_not_add_up_is_refused(sample: Sample) -> None:
    sample.merge()
    lines = sample.quarantine.read_text().splitlines(keepends=True)
    sample.quarantine.write_text("".join(lines[:2]))
    with pytest.raises(DataError, match="52 records were read and 50 accepted"):
        run(sample)


@pytest.mark.parametrize("content", ["step\titems\n", TRACE, None])
@pytest.mark.fault(7, 8)
def test_damaged_trace_is_refused(sample: Sample, content: str | None) -> None:
    sample.merge()
    trace = sample.embeddings_dir / "00002.trace.tsv"
    whole = trace.read_text()
    trace.write_text(content if content is not None else whole.replace("\t0.", "\t3."))
    with pytest.raises(DataError, match=r"00002\.trace\.tsv: (has columns|is damaged)"):
        run(sample)
    trace.unlink()
    with pytest.raises(DataError, match=r"1 missing: 00002\.trace\.tsv"):
        run(sample)


def test_plans_of_a_known_model_say_what_it_costs(sample: Sample) -> None:
    report = plans(sample, workload=Workload("esm2_t33_650M_UR50D", 1280))
    assert report["cost"]["jobs"] == len(sample.names)
    assert [entry["device"] for entry in report["cost"]["devices"]] == ["NVIDIA H100 80GB HBM3"]
    assert "cost" not in plans(sample)


def test_run_is_compared_with_the_estimate_for_its_device(sample: Sample) -> None:
    sample.merge()
    receipt = json.loads((sample.embeddings_dir / f"{sample.names[0]}.json").read_text())
    ran = [receipt[field] for field in ("device", "model", "compute_dtype")]
    cache = sample.root / "cache"
    cache.mkdir()
    assert run(sample)["measured"]["estimate"] is None
    keep_rates(cache, {"/".join(ran): 1000.0})
    report = run(sample, cache_dir=cache)
    computed, measured = report["planned"]["computed_tokens"], report["measured"]
    assert measured["estimate"] == {
        "seconds": round(computed / 1000, 1),
        "measured_over_estimated": pytest.approx(
            measured["seconds"] / round(computed / 1000, 1), abs=1e-3
        ),
    }


def test_closeness_of_float8_is_the_least_of_all_shards(sample: Sample) -> None:
    sample.merge()
    assert run(sample)["model"]["closeness"] is None
    for number, name in enumerate(sample.names):
        path = sample.embeddings_dir / f"{name}.json"
        cosines = {"pooled_cosine_min": 0.9995 - number * 1e-4, "pooled_cosine_median": 0.9997}
        cosines |= {"residue_cosine_min": 0.9991, "residue_cosine_median": 0.9996 - number * 1e-4}
        found = json.loads(path.read_text()) | {"closeness": {"sequences": 16, **cosines}}
        path.write_text(json.dumps(found))
    closeness = run(sample)["model"]["closeness"]
    last = len(sample.names) - 1
    assert closeness["sequences"] == 16 * len(sample.names)
    assert closeness["pooled_cosine_min"] == pytest.approx(0.9995 - last * 1e-4)
    assert closeness["residue_cosine_median"] == pytest.approx(0.9996 - last / 2 * 1e-4)
    page = (sample.root / "report" / "summary.html").read_text()
    assert "Cosine to float32, embeddings" in page
