"""The report on a sample's plans: what they promise before a GPU is taken."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from virnucpro.files import atomic_path, write_json
from virnucpro.formats import REPORT_FORMAT
from virnucpro.merge.tables import write_table
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.report import Packing, PlanReport
from virnucpro.report.content import Duplicates, planned_json
from virnucpro.report.cost import Cost, Workload, cost_lines, estimate_cost
from virnucpro.report.known import Known, StoreLookup, find_known, known_lines
from virnucpro.report.rates import Estimate, estimate_seconds
from virnucpro.report.summaries import (
    PlanTotals,
    RecordSummary,
    read_plan_reports,
    shares,
    summarise_plans,
    summarise_records,
)
from virnucpro.sequences.manifest import Manifest, RecordCounts, read_manifest

__all__ = [
    "PLAN_COLUMNS",
    "PlansReport",
    "plan_cells",
    "plans_report",
    "saved_by_duplicates",
    "write_rows",
]

logger = logging.getLogger(__name__)

PLAN_COLUMNS = (
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
_NOTE = "Seconds are computed tokens over the rate measured on the device."


@dataclass(frozen=True)
class PlansReport:
    """The report on all plans of a sample."""

    sample: str
    parameters: PlanParameters
    records: RecordCounts
    duplicates: Duplicates
    totals: PlanTotals
    plans: list[PlanReport]  # one per shard
    estimates: list[Estimate]  # one per device, model and dtype whose rate is known
    cost: Cost | None  # where a workload is known
    known: list[Known] | None  # what stores have, by request; None without a store

    def as_json(self) -> dict[str, Any]:
        """Return the report as it stands in plan_report.json."""
        return {
            "format": REPORT_FORMAT,
            "sample": self.sample,
            "parameters": asdict(self.parameters),
            "records": asdict(self.records),
            "duplicates": asdict(self.duplicates),
            "totals": asdict(self.totals),
            "shards": list(map(planned_json, self.plans)),
            "estimates": list(map(asdict, self.estimates)),
            "estimates_note": _NOTE,
            **({} if self.cost is None else {"cost": asdict(self.cost)}),
            **({} if self.known is None else {"known": list(map(asdict, self.known))}),
        }


def plans_report(
    shards_dir: Path,
    plans_dir: Path,
    json_path: Path,
    tsv_path: Path,
    *,
    records: Path | None = None,
    cache_dir: Path | None = None,
    workload: Workload | None = None,
    lookup: StoreLookup | None = None,
) -> PlansReport:
    """Report on all plans of a sample: their cost, and how long a known device will take.

    Args:
        shards_dir: manifest.json of `split`.
        plans_dir: ``{shard}.json`` of every shard.
        json_path: the report.
        tsv_path: one row per shard, and one for the total; efficiencies from 0 to 1.
        records: records.parquet; without it the tokens that duplicates save are not known.
        cache_dir: has the rates that `virnucpro budget` measured.
        workload: what will be computed; adds ``cost``, see `estimate_cost`.
        lookup: the stores to look into; adds ``known``, see `virnucpro.report.known`.

    Raises:
        DataError: a plan report is missing, damaged or of another split.
        InputError: a file has another format number.
    """
    manifest = read_manifest(shards_dir)
    plans = read_plan_reports(manifest, plans_dir)
    totals = summarise_plans(plans)
    summary = None if records is None else summarise_records(records)
    estimates = estimate_seconds(totals.computed_tokens, cache_dir)
    rows = manifest.records.accepted
    plan_paths = [plans_dir / f"{name}.parquet" for name in manifest.names]
    report = PlansReport(
        sample=manifest.sample,
        parameters=plans[0].parameters,
        records=manifest.records,
        duplicates=saved_by_duplicates(manifest, plans[0].parameters, totals, summary),
        totals=totals,
        plans=plans,
        estimates=estimates,
        cost=None if workload is None else estimate_cost(workload, rows, plans, estimates),
        known=None if lookup is None else find_known(lookup, plan_paths, estimates),
    )
    write_json(json_path, report.as_json())
    cells = [plan_cells(plan.shard, plan.packing) for plan in plans]
    write_rows(tsv_path, PLAN_COLUMNS, [*cells, plan_cells("total", totals)])
    _log(report)
    return report


def _log(report: PlansReport) -> None:
    logger.info(
        "%s: %d tokens in %d batches, which are %.2f%% full; %d records are duplicates",
        *(report.sample, report.totals.tokens, report.totals.batches),
        *(100 * report.totals.efficiency, report.duplicates.records),
    )
    if report.cost is not None:
        lines = cost_lines(report.cost)
    else:
        lines = [
            f"estimated on {one.device}, {one.model}, {one.dtype}: {one.seconds:.0f} s"
            for one in report.estimates
        ]
    for line in [*lines, *known_lines(report.known)]:
        logger.info("%s", line)


def saved_by_duplicates(
    manifest: Manifest,
    parameters: PlanParameters,
    totals: PlanTotals,
    summary: RecordSummary | None,
) -> Duplicates:
    """Count the records that repeat a sequence, and the tokens saved by computing it once."""
    saved = None if summary is None else summary.tokens(parameters) - totals.tokens
    return Duplicates(manifest.records.duplicates, saved)


def plan_cells(shard: str, planned: Packing | PlanTotals) -> dict[str, Any]:
    """Return the cells of a row by the names of `PLAN_COLUMNS`, and more."""
    return {**asdict(planned), **shares(planned), "shard": shard}


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a table of some columns of the rows; a row may lack some."""
    with atomic_path(path) as temporary:
        write_table(temporary, columns, ([row.get(name) for name in columns] for row in rows))
