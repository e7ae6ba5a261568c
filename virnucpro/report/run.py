"""The reports: what the plans promise before a GPU is taken, and what the run then did."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from virnucpro.errors import DataError
from virnucpro.files import atomic_path, write_bytes, write_json
from virnucpro.formats import REPORT_FORMAT
from virnucpro.merge.ledger import read_quarantine
from virnucpro.merge.provenance import DEMO_NOTICE
from virnucpro.merge.receipts import check_agreement, check_complete, read_receipt
from virnucpro.merge.shards import read_manifest, shard_names
from virnucpro.merge.tables import write_table
from virnucpro.report.cost import Wanted, cost_lines, estimate_cost
from virnucpro.report.pages import ledger_page, summary_page
from virnucpro.report.rates import estimate_seconds
from virnucpro.report.summaries import (
    PARAMETERS,
    RecordSummary,
    Trace,
    read_plan_reports,
    read_trace,
    summarise_plans,
    summarise_records,
    summarise_traces,
)

__all__ = ["plans_report", "run_report"]

logger = logging.getLogger(__name__)

_PLAN_COLUMNS = (
    "shard",
    "sequences",
    "items",
    "tokens",
    "batches",
    "lower_bound",
    "efficiency",
    "next_fit_decreasing",
    "sorted_padding",
    "unsorted_padding",
    "truncated_sequences",
    "windowed_sequences",
)
_INPUT_FIELDS = ("sha256", "records")
_MODEL_FIELDS = (
    "model",
    "weights_sha256",
    "layers",
    "pooling",
    "pseudo_perplexity",
    "compute_dtype",
)
_EXECUTION_FIELDS = (
    "device",
    "backend",
    "tokens_per_step",
    "steps",
    "retries",
    "recomputed_float32",
)
_MEASURED_FIELDS = (
    "seconds",
    "tokens_per_second",
    "filled",
    "peak_memory_bytes",
)


def plans_report(
    shards_dir: Path,
    plans_dir: Path,
    json_path: Path,
    tsv_path: Path,
    *,
    records: Path | None = None,
    cache_dir: Path | None = None,
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Report on all plans of a sample: their cost, and how long a known device will take.

    Args:
        shards_dir: manifest.json of `split`.
        plans_dir: ``{shard}.json`` of every shard.
        json_path: the report.
        tsv_path: a row a shard, and one with the total; efficiencies from 0 to 1.
        records: records.parquet; without it the tokens that duplicates save are not known.
        cache_dir: holds ``rates.json``, the rates that `virnucpro budget` measured:
            ``"device/model/dtype"`` -> tokens per second.
        wanted: what will be computed; adds ``cost``, see `estimate_cost`.

    Returns:
        The report, as it stands in `json_path`.

    Raises:
        DataError: a plan report is missing, damaged or of another split.
        InputError: a file has another format number.
    """
    manifest = read_manifest(shards_dir)
    reports = read_plan_reports(manifest, plans_dir)
    totals = summarise_plans(reports)
    summary = None if records is None else summarise_records(records)
    estimates = estimate_seconds(totals["computed_tokens"], cache_dir)
    report = {
        "format": REPORT_FORMAT,
        "sample": manifest["sample"],
        "parameters": {field: reports[0][field] for field in PARAMETERS},
        "records": manifest["records"],
        "duplicates": _duplicates(manifest, reports[0], totals, summary),
        "totals": totals,
        "shards": [_planned(entry) for entry in reports],
        "estimates": estimates,
        "estimates_note": "Seconds are computed tokens over the rate measured on the device.",
    }
    if wanted is not None:
        report["cost"] = estimate_cost(wanted, manifest["records"]["accepted"], reports, estimates)
    write_json(json_path, report)
    _write_tsv(tsv_path, _PLAN_COLUMNS, [*map(_plan_cells, reports), _plan_cells(totals)])
    logger.info(
        "%s: %d tokens in %d batches, which are %.2f%% full; %d records are duplicates",
        manifest["sample"],
        totals["tokens"],
        totals["batches"],
        100 * totals["efficiency"],
        manifest["records"]["duplicates"],
    )
    for line in cost_lines(report["cost"]) if wanted else map(_estimate_line, estimates):
        logger.info("%s", line)
    return report


def _estimate_line(estimate: dict[str, Any]) -> str:
    return "estimated on {device}, {model}, {dtype}: {seconds:.0f} s".format(**estimate)


def _duplicates(
    manifest: dict[str, Any],
    plan: dict[str, Any],
    totals: dict[str, Any],
    summary: RecordSummary | None,
) -> dict[str, Any]:
    """Say how many records repeat a sequence, and the tokens saved by computing it once."""
    saved = None
    if summary is not None:
        limits = (
            plan[name] for name in ("max_sequence_length", "long_sequences", "window_overlap")
        )
        saved = summary.tokens(*limits) - totals["tokens"]
    return {"records": manifest["records"]["duplicates"], "tokens_saved": saved}


def _planned(report: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a shard's plan report what is the same for all shards."""
    return {
        key: value
        for key, value in report.items()
        if key not in ("format", "length_histogram", *PARAMETERS)
    }


def _plan_cells(report: dict[str, Any]) -> dict[str, Any]:
    alternatives = {name: values["efficiency"] for name, values in report["alternatives"].items()}
    return {"shard": "total", **report, **alternatives}


def _write_tsv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        write_table(temporary, columns, ([row.get(name) for name in columns] for row in rows))


def run_report(
    *,
    shards_dir: Path,
    plans_dir: Path,
    embeddings_dir: Path,
    records: Path,
    quarantine: Path,
    json_path: Path,
    tsv_path: Path,
    report_dir: Path,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Report on a finished run: planned and achieved, and where every record went.

    Times stand under ``measured`` only; all else is the same for the same input and device.

    Args:
        shards_dir: manifest.json of `split`.
        plans_dir: ``{shard}.json`` of every shard.
        embeddings_dir: ``{shard}.json`` and ``{shard}.trace.tsv`` of every shard.
        records: records.parquet.
        quarantine: the final quarantine table.
        json_path: the report.
        tsv_path: a row a shard, and one with the total.
        report_dir: gets the pages summary.html and ledger.html, and the figures
            length_distribution.svg, packing_efficiency.svg, packing_by_shard.svg, duplicates.svg
            and throughput.svg.
        cache_dir: holds ``rates.json``; the rates are compared with what came to pass.

    Returns:
        The report, as it stands in `json_path`.

    Raises:
        DataError: a file is missing, damaged or of another split; or the ledger does not balance.
        InputError: a file has another format number.
    """
    manifest = read_manifest(shards_dir)
    names = shard_names(manifest)
    check_complete(names, embeddings_dir, (".json", ".trace.tsv"))
    plans = read_plan_reports(manifest, plans_dir)
    receipts = [read_receipt(embeddings_dir / f"{name}.json") for name in names]
    traces = [read_trace(embeddings_dir, receipt) for receipt in receipts]
    summary = summarise_records(records)
    totals = summarise_plans(plans)
    parameters = {field: plans[0][field] for field in PARAMETERS}
    limits = (parameters["max_sequence_length"], parameters["long_sequences"])
    report = {
        "format": REPORT_FORMAT,
        "sample": manifest["sample"],
        "demo": receipts[0]["demo"],
        "notice": DEMO_NOTICE if receipts[0]["demo"] else None,
        "inputs": [
            {"file": PurePath(entry["path"]).name, **{key: entry[key] for key in _INPUT_FIELDS}}
            for entry in manifest["inputs"]
        ],
        "model": {**_model(receipts[0]), "closeness": _closeness(receipts)},
        "parameters": parameters,
        "ledger": _ledger(manifest, summary, quarantine, limits),
        "duplicates": _duplicates(manifest, plans[0], totals, summary),
        "planned": totals,
        "shards": [_planned(plan) for plan in plans],
        "execution": _execution(receipts),
        "measured": _measured(traces, receipts, totals),
    }
    report["measured"]["estimate"] = _compare(report, receipts, cache_dir)
    write_json(json_path, report)
    _write_tsv(tsv_path, *_run_table(report))
    _show(report, plans, summary, traces, quarantine, report_dir)
    if report["notice"]:
        logger.warning(report["notice"])
    return report


def _compare(
    report: dict[str, Any], receipts: Sequence[dict[str, Any]], cache_dir: Path | None
) -> dict[str, Any] | None:
    """Compare the seconds of all steps with the estimate for the device; None without a rate."""
    if len({receipt["device"] for receipt in receipts}) > 1:
        return None
    ran = {
        "device": receipts[0]["device"],
        "model": receipts[0]["model"],
        "dtype": receipts[0]["compute_dtype"],
    }
    for estimate in estimate_seconds(report["planned"]["computed_tokens"], cache_dir):
        if all(estimate[key] == value for key, value in ran.items()) and estimate["seconds"]:
            seconds = report["measured"]["seconds"]
            logger.info("the steps took %.1f s, %.1f were estimated", seconds, estimate["seconds"])
            return {
                "seconds": estimate["seconds"],
                "measured_over_estimated": round(seconds / estimate["seconds"], 3),
            }
    return None


def _measured(
    traces: Sequence[Trace], receipts: Sequence[dict[str, Any]], totals: dict[str, Any]
) -> dict[str, Any]:
    """Sum up the traces; what a million residues cost is in seconds of the device."""
    measured = summarise_traces(traces, [receipt["tokens_per_step"] for receipt in receipts])
    residues = totals["residues"]
    cost = round(1e6 * measured["seconds"] / residues, 4) if residues else None
    return {"seconds_per_million_residues": cost, **measured}


def _show(
    report: dict[str, Any],
    plans: Sequence[dict[str, Any]],
    summary: RecordSummary,
    traces: Sequence[Trace],
    quarantine: Path,
    folder: Path,
) -> None:
    """Write the pages and figures of `snakemake --report`."""
    # Here, for the plans' report draws nothing, and matplotlib takes half a second.
    from virnucpro.report import figures

    ledger = ledger_page(report, read_quarantine(quarantine))
    write_bytes(folder / "summary.html", summary_page(report).encode())
    write_bytes(folder / "ledger.html", ledger.encode())
    parameters, measured = report["parameters"], report["measured"]
    figures.length_distribution(
        summary.lengths,
        summary.counts,
        parameters["max_sequence_length"],
        parameters["long_sequences"],
        folder / "length_distribution.svg",
    )
    figures.packing_efficiency(
        report["planned"], measured["filled"], folder / "packing_efficiency.svg"
    )
    figures.packing_by_shard(
        plans,
        [shard["filled"] for shard in measured["shards"]],
        folder / "packing_by_shard.svg",
    )
    saved = report["duplicates"]["tokens_saved"]
    figures.duplicates(summary.copies, summary.sequences, saved, folder / "duplicates.svg")
    figures.run(traces, folder / "throughput.svg")


def _model(receipt: dict[str, Any]) -> dict[str, Any]:
    model = {field: receipt[field] for field in _MODEL_FIELDS}
    return {**model, "output_dtype": receipt["dtype"]}


def _closeness(receipts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Sum up how close a coarse number format was to float32 in each shard; None if not asked."""
    found = [receipt["closeness"] for receipt in receipts if receipt.get("closeness")]
    if not found:
        return None
    return {
        "sequences": sum(one["sequences"] for one in found),
        **{key: min(one[key] for one in found) for key in found[0] if key.endswith("_min")},
        **{
            key: round(median(one[key] for one in found), 6)
            for key in found[0]
            if key.endswith("_median")
        },
    }


def _ledger(
    manifest: dict[str, Any], summary: RecordSummary, quarantine: Path, limits: tuple[int, str]
) -> dict[str, Any]:
    """Count the records in the files; the manifest's numbers must come out."""
    reasons = Counter(row["reason"] for row in read_quarantine(quarantine))
    counts = manifest["records"]
    failed = reasons.total() - counts["quarantined"]
    found = (summary.records, summary.records + counts["quarantined"])
    if found != (counts["accepted"], counts["read"]) or failed < 0:
        raise DataError(
            f"{counts['read']} records were read and {counts['accepted']} accepted, but there "
            f"are {summary.records} accepted records and {reasons.total()} quarantined ones",
            path=quarantine,
            hint="run merge again",
        )
    truncated, residues_left_out = summary.truncated(*limits)
    return {
        "read": counts["read"],
        "embedded": summary.records - failed,
        "quarantined": reasons.total(),
        "quarantined_by_reason": dict(sorted(reasons.items())),
        "truncated": truncated,
        "residues": summary.residues,
        "residues_left_out": residues_left_out,
        "in_windows": summary.longer(limits[0]) - truncated,
        "normalised": summary.normalised,
        "letters_replaced": summary.replaced,
        "duplicates": counts["duplicates"],
    }


def _execution(receipts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say on what each shard ran, and in what shards differ."""
    distinct = check_agreement(receipts)
    shards = [
        {
            "shard": receipt["shard"],
            **{field: receipt[field] for field in _EXECUTION_FIELDS},
            "quarantined_sequences": len(receipt["quarantined"]),
        }
        for receipt in receipts
    ]
    return {
        "differing": [field for field, values in distinct.items() if len(values) > 1],
        **distinct,
        "shards": shards,
    }


def _run_table(report: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Make the columns and rows of the table: a row a shard, and the total."""
    columns = [
        *_PLAN_COLUMNS,
        *_EXECUTION_FIELDS,
        "quarantined_sequences",
        *_MEASURED_FIELDS,
    ]
    execution, measured = report["execution"]["shards"], report["measured"]
    rows = [
        {**times, **ran, **_plan_cells(plan)}
        for plan, ran, times in zip(report["shards"], execution, measured["shards"], strict=True)
    ]
    summed = ("steps", "retries", "recomputed_float32", "quarantined_sequences")
    sums = {field: sum(ran[field] for ran in execution) for field in summed}
    return columns, [*rows, {**measured, **sums, **_plan_cells(report["planned"])}]
