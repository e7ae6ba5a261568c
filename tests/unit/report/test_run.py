import csv
import json
from typing import Any

import pytest

from tests.unit.report.test_plans import keep_rates, plans
from tests.unit.samples import STEP_LOG, Sample, step_log_line
from virnucpro.errors import DataError
from virnucpro.report.content import RunReport
from virnucpro.report.run import run_report


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
    step_log = sample.embeddings_dir / "00000.steps.tsv"
    lines = [line.split("\t")[:-1] for line in step_log.read_text().splitlines()[1:]]
    other = (step_log_line(*cells[:3], cells[3].replace("0.", "7."), *cells[4:]) for cells in lines)
    step_log.write_text(STEP_LOG + "".join(other))
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


@pytest.mark.parametrize("content", ["step\titems\n", STEP_LOG, None])
@pytest.mark.fault(7, 8)
def test_damaged_step_log_is_refused(sample: Sample, content: str | None) -> None:
    sample.merge()
    step_log = sample.embeddings_dir / "00002.steps.tsv"
    whole = step_log.read_text()
    step_log.write_text(content if content is not None else whole.replace("\t0.", "\t3."))
    with pytest.raises(DataError, match=r"00002\.steps\.tsv: (has columns|is damaged)"):
        run(sample)
    step_log.unlink()
    with pytest.raises(DataError, match=r"1 missing: 00002\.steps\.tsv"):
        run(sample)


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


def test_agreement_of_float8_is_the_least_of_all_shards(sample: Sample) -> None:
    sample.merge()
    assert run(sample)["model"]["agreement"] is None
    for number, name in enumerate(sample.names):
        path = sample.embeddings_dir / f"{name}.json"
        among = {"centred_cosine_min": 0.998 - number * 1e-4, "centred_cosine_median": 0.9985}
        among |= {"sequences": 10 * (1 + number), "nearest_kept": 1 - number / 10}
        cosines = {"pooled_cosine_min": 0.9995 - number * 1e-4, "pooled_cosine_median": 0.9997}
        cosines |= {"residue_cosine_min": 0.9991, "residue_cosine_median": 0.9996 - number * 1e-4}
        agreement = {"sequences": 16, **cosines, "neighbourhood": among if number else None}
        found = json.loads(path.read_text()) | {"agreement": agreement}
        path.write_text(json.dumps(found))
    agreement = run(sample)["model"]["agreement"]
    last = len(sample.names) - 1
    assert last > 1
    assert agreement["sequences"] == 16 * len(sample.names)
    assert agreement["pooled_cosine_min"] == pytest.approx(0.9995 - last * 1e-4)
    assert agreement["residue_cosine_median"] == pytest.approx(0.9996 - last / 2 * 1e-4)
    sizes = {number: 10 * (1 + number) for number in range(1, last + 1)}
    kept = sum(size * (1 - number / 10) for number, size in sizes.items()) / sum(sizes.values())
    assert agreement["neighbourhood"] == {
        "sequences": sum(sizes.values()),
        "centred_cosine_min": pytest.approx(0.998 - last * 1e-4),
        "centred_cosine_median": 0.9985,
        "nearest_kept": pytest.approx(kept, abs=1e-6),
    }
    page = (sample.root / "report" / "summary.html").read_text()
    assert "Cosine to float32, embeddings less their mean" in page
    assert f"{100 * kept:.2f}%" in page
