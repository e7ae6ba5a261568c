"""The report on a finished run: what was planned and achieved, and where every record went."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from virnucpro.embed.receipt import Float32Agreement, Neighbourhood, ShardReceipt, read_receipt
from virnucpro.errors import DataError
from virnucpro.files import write_bytes, write_json
from virnucpro.merge.execution import check_execution
from virnucpro.merge.ledger import read_quarantine
from virnucpro.merge.provenance import DEMO_NOTICE
from virnucpro.merge.shards import check_complete
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.report import PlanReport
from virnucpro.report.content import Comparison, Ledger, Model, RunReport
from virnucpro.report.pages import ledger_page, summary_page
from virnucpro.report.plans import PLAN_COLUMNS, plan_cells, saved_by_duplicates, write_rows
from virnucpro.report.rates import estimate_seconds
from virnucpro.report.step_logs import StepLog, read_step_log, summarise_step_logs
from virnucpro.report.summaries import (
    RecordSummary,
    read_plan_reports,
    shares,
    summarise_plans,
    summarise_records,
)
from virnucpro.sequences.manifest import Manifest, read_manifest

__all__ = ["run_report"]

logger = logging.getLogger(__name__)

_SUMMED = ("steps", "retries", "recomputed_float32", "quarantined_sequences")
_RUN_COLUMNS = (
    *PLAN_COLUMNS,
    *("device", "backend", "tokens_per_step"),
    *_SUMMED,
    *("seconds", "tokens_per_second", "filled", "peak_memory_bytes"),
)


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
) -> RunReport:
    """Report on a finished run.

    Args:
        shards_dir: manifest.json of `split`.
        plans_dir: ``{shard}.json`` of every shard.
        embeddings_dir: ``{shard}.json`` and ``{shard}.steps.tsv`` of every shard.
        records: records.parquet.
        quarantine: the final quarantine table.
        json_path: the report.
        tsv_path: one row per shard, and one for the total.
        report_dir: gets the pages summary.html and ledger.html, and the figures
            length_distribution.svg, packing_efficiency.svg, packing_by_shard.svg, duplicates.svg
            and throughput.svg.
        cache_dir: has the measured rates, with which the run is compared.

    Raises:
        DataError: a file is missing, damaged or of another split; or the ledger does not balance.
        InputError: a file has another format number.
    """
    manifest = read_manifest(shards_dir)
    check_complete(manifest.names, embeddings_dir, (".json", ".steps.tsv"))
    plans = read_plan_reports(manifest, plans_dir)
    receipts = [read_receipt(embeddings_dir / f"{name}.json") for name in manifest.names]
    step_logs = [
        read_step_log(embeddings_dir, receipt.shard, receipt.steps) for receipt in receipts
    ]
    summary = summarise_records(records)
    ledger = _ledger(manifest, summary, quarantine, plans[0].parameters)
    report = _report(manifest, plans, receipts, step_logs, summary, ledger, cache_dir)
    write_json(json_path, report.as_json())
    write_rows(tsv_path, _RUN_COLUMNS, _rows(report))
    _show(report, summary, step_logs, quarantine, report_dir)
    if report.notice:
        logger.warning(report.notice)
    return report


def _report(
    manifest: Manifest,
    plans: list[PlanReport],
    receipts: list[ShardReceipt],
    step_logs: list[StepLog],
    summary: RecordSummary,
    ledger: Ledger,
    cache_dir: Path | None,
) -> RunReport:
    """Put the report together."""
    totals, parameters = summarise_plans(plans), plans[0].parameters
    measured, steps = summarise_step_logs(
        step_logs, [receipt.tokens_per_step for receipt in receipts]
    )
    each = round(1e6 * measured.seconds / totals.residues, 4) if totals.residues else None
    return RunReport(
        sample=manifest.sample,
        demo=receipts[0].demo,
        notice=DEMO_NOTICE if receipts[0].demo else None,
        model=_model(receipts),
        ledger=ledger,
        planned=totals,
        execution=check_execution(receipts),
        measured=measured,
        inputs=manifest.inputs,
        parameters=parameters,
        duplicates=saved_by_duplicates(manifest, parameters, totals, summary),
        plans=plans,
        receipts=receipts,
        steps=steps,
        seconds_per_million_residues=each,
        estimate=_compare(receipts, totals.computed_tokens, measured.seconds, cache_dir),
    )


def _compare(
    receipts: Sequence[ShardReceipt], tokens: int, seconds: float, cache_dir: Path | None
) -> Comparison | None:
    """Compare the seconds of all steps with the estimate for the device; None without a rate."""
    first = receipts[0]
    if any(receipt.device != first.device for receipt in receipts):
        return None
    ran = (first.device, first.model, first.compute_dtype)
    for estimate in estimate_seconds(tokens, cache_dir):
        if (estimate.device, estimate.model, estimate.dtype) == ran and estimate.seconds:
            logger.info("the steps took %.1f s, %.1f were estimated", seconds, estimate.seconds)
            return Comparison(estimate.seconds, round(seconds / estimate.seconds, 3))
    return None


def _model(receipts: Sequence[ShardReceipt]) -> Model:
    first = receipts[0]
    return Model(
        first.model,
        first.weights_sha256,
        first.layers,
        first.pooling,
        first.pseudo_perplexity,
        first.compute_dtype,
        output_dtype=first.dtype,
        agreement=_agreement(receipts),
    )


def _agreement(receipts: Sequence[ShardReceipt]) -> Float32Agreement | None:
    """Sum up how close a coarse number format was to float32; None where it was not measured."""
    found = [receipt.agreement for receipt in receipts if receipt.agreement]
    if not found:
        return None
    among = [one.neighbourhood for one in found if one.neighbourhood]
    compared = sum(one.sequences for one in among)
    return Float32Agreement(
        sum(one.sequences for one in found),
        min(one.pooled_cosine_min for one in found),
        round(median(one.pooled_cosine_median for one in found), 6),
        min(one.residue_cosine_min for one in found),
        round(median(one.residue_cosine_median for one in found), 6),
        Neighbourhood(
            compared,
            min(one.centred_cosine_min for one in among),
            round(median(one.centred_cosine_median for one in among), 6),
            round(sum(one.sequences * one.nearest_kept for one in among) / compared, 6),
        )
        if among
        else None,
    )


def _ledger(
    manifest: Manifest, summary: RecordSummary, quarantine: Path, parameters: PlanParameters
) -> Ledger:
    """Count the records in the files, and check the manifest's numbers against them."""
    reasons = Counter(row.reason for row in read_quarantine(quarantine))
    counts = manifest.records
    failed = reasons.total() - counts.quarantined
    found = (summary.records, summary.records + counts.quarantined)
    if found != (counts.accepted, counts.read) or failed < 0:
        raise DataError(
            f"{counts.read} records were read and {counts.accepted} accepted, but there are "
            f"{summary.records} accepted records and {reasons.total()} quarantined ones",
            path=quarantine,
            hint="run merge again",
        )
    truncated, residues_left_out = summary.truncated(parameters)
    return Ledger(
        read=counts.read,
        embedded=summary.records - failed,
        quarantined=reasons.total(),
        quarantined_by_reason=dict(sorted(reasons.items())),
        truncated=truncated,
        residues=summary.residues,
        residues_left_out=residues_left_out,
        in_windows=summary.longer(parameters.max_sequence_length) - truncated,
        normalised=summary.normalised,
        letters_replaced=summary.replaced,
        duplicates=counts.duplicates,
    )


def _rows(report: RunReport) -> list[dict[str, Any]]:
    """Return the rows of the table: one row per shard, and the total."""
    rows = [
        {**vars(steps), **ran, **plan_cells(plan.shard, plan.packing)}
        for plan, ran, steps in zip(report.plans, report.ran, report.steps, strict=True)
    ]
    sums = {field: sum(ran[field] for ran in report.ran) for field in _SUMMED}
    return [*rows, {**vars(report.measured), **sums, **plan_cells("total", report.planned)}]


def _show(
    report: RunReport,
    summary: RecordSummary,
    step_logs: Sequence[StepLog],
    quarantine: Path,
    folder: Path,
) -> None:
    """Write the pages and figures of `snakemake --report`."""
    # Here, for the plans' report draws nothing, and matplotlib takes half a second.
    from virnucpro.report import figures

    ledger = ledger_page(report, read_quarantine(quarantine))
    write_bytes(folder / "summary.html", summary_page(report).encode())
    write_bytes(folder / "ledger.html", ledger.encode())
    lengths, filled = folder / "length_distribution.svg", report.measured.filled
    figures.length_distribution(summary.lengths, summary.counts, report.parameters, lengths)
    figures.packing_efficiency(
        {**shares(report.planned), "achieved": filled}, folder / "packing_efficiency.svg"
    )
    by_shard = [
        {**shares(plan.packing), "achieved": steps.filled}
        for plan, steps in zip(report.plans, report.steps, strict=True)
    ]
    figures.packing_by_shard(by_shard, folder / "packing_by_shard.svg")
    saved = report.duplicates.tokens_saved or 0
    figures.duplicates(summary.copies, summary.sequences, saved, folder / "duplicates.svg")
    figures.throughput(step_logs, folder / "throughput.svg")
