"""The pages of the report: a sample at a glance, its ledger, and the overview of all samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from virnucpro.embed.receipt import Float32Agreement
from virnucpro.formats import POOLINGS
from virnucpro.merge.ledger import QuarantineRow
from virnucpro.plan.parameters import PlanParameters
from virnucpro.quarantine import Reason
from virnucpro.report.content import Ledger, RunReport, SampleSummary
from virnucpro.report.html import Row, page, table

__all__ = ["ledger_page", "overview_page", "summary_page"]

_LISTED = 200
_GB = 1e9


def summary_page(report: RunReport) -> str:
    """Show one sample's run at a glance."""
    return page(
        f"Sample {report.sample}",
        report.notice,
        *table("Result", _result_rows(report)),
        *table("Time and cost", _cost_rows(report), _cost_note(report)),
        *table("Packing", _packing_rows(report)),
        *table("Model", _model_rows(report)),
        *table(
            "Input",
            [[file.name, file.records, file.sha256] for file in report.inputs],
            header=["File", "Records", "SHA-256"],
        ),
    )


def ledger_page(report: RunReport, quarantined: Iterable[QuarantineRow]) -> str:
    """Show where every record went, and list the first quarantined ones.

    Args:
        report: of the sample's run.
        quarantined: rows of the quarantine table; no more than are listed are read.
    """
    rows = [list(row[1:]) for row in itertools.islice(quarantined, _LISTED)]
    listed = "" if report.ledger.quarantined <= _LISTED else f" The first {_LISTED} are listed."
    return page(
        f"Ledger of sample {report.sample}",
        report.notice,
        *table(
            "Every record, once",
            _fate_rows(report.ledger),
            header=["", "Records", "Share", "Where"],
            totals=True,
        ),
        *table(
            "What was done to accepted records",
            _flag_rows(report.ledger, report.parameters.max_sequence_length),
            "A record may be counted in several of these rows.",
            header=["", "Records", "Share", "How to find them"],
        ),
        *table(
            "Why records were quarantined",
            _reason_rows(report.ledger),
            header=["Reason", "Records", "Share", ""],
        ),
        *table(
            "Quarantined records",
            rows,
            f"All stand in quarantine.tsv.{listed}",
            header=["Id", "File", "Line", "Residues", "Reason", "Detail"],
        ),
    )


def overview_page(reports: Sequence[SampleSummary]) -> str:
    """Show all samples of a run, one row each."""
    rows: list[Row] = []
    for report in reports:
        ledger, measured = report.ledger, report.measured
        rows.append(
            [
                report.sample,
                ledger.read,
                ledger.embedded,
                ledger.truncated,
                ledger.quarantined,
                ledger.duplicates,
                _percent_of(report.planned.efficiency),
                _seconds(measured.seconds),
                _rate(measured.tokens_per_second),
                ", ".join(report.execution.device),
            ]
        )
    header = [
        *("Sample", "Read", "Embedded", "Truncated", "Quarantined", "Repeats", "Packed", "Time"),
        *("Tokens/s", "Device"),
    ]
    note = (
        f"Model: {reports[0].model.model}. Records in columns 2 to 6. Packed: share of real "
        "tokens in the planned batches. Time: of the steps on the device, without loading the "
        "model."
    )
    notices = [report.notice for report in reports if report.notice]
    title = f"{len(reports):,} sample{'s' if len(reports) != 1 else ''}"
    return page(title, notices[0] if notices else None, *table("", rows, note, header=header))


def _fate_rows(ledger: Ledger) -> list[Row]:
    return [
        _counted("Read from the input", ledger.read, ledger, ""),
        _counted("Embedded", ledger.embedded, ledger, "embeddings.h5ad"),
        _counted("Quarantined", ledger.quarantined, ledger, "see below"),
    ]


def _flag_rows(ledger: Ledger, limit: int) -> list[Row]:
    return [
        _counted(
            "Truncated",
            ledger.truncated,
            ledger,
            f"{ledger.residues_left_out:,} residues beyond {limit:,} left out; column truncated",
        ),
        _counted(
            "Computed in windows",
            ledger.in_windows,
            ledger,
            f"longer than {limit:,} residues, all of them computed; column windows",
        ),
        _counted(
            "Normalised",
            ledger.normalised,
            ledger,
            f"{ledger.letters_replaced:,} letters became X; columns normalised, replaced",
        ),
        _counted(
            "Repeats of a sequence",
            ledger.duplicates,
            ledger,
            "computed once; equal in column key",
        ),
    ]


def _reason_rows(ledger: Ledger) -> list[Row]:
    return [
        _counted(reason, count, ledger, Reason(reason).sentence)
        for reason, count in ledger.quarantined_by_reason.items()
    ]


def _counted(name: str, count: int, ledger: Ledger, note: str) -> Row:
    """Return a row with a number of records and their share of those that were read."""
    return [name, count, _percent(count, ledger.read), note]


def _result_rows(report: RunReport) -> list[Row]:
    ledger = report.ledger
    return [
        ["Records read", ledger.read],
        ["Embedded", f"{ledger.embedded:,} ({_percent(ledger.embedded, ledger.read)})"],
        ["Quarantined", ledger.quarantined],
        [
            "Truncated",
            f"{ledger.truncated:,}; {ledger.residues_left_out:,} of {ledger.residues:,} "
            f"residues left out ({_percent(ledger.residues_left_out, ledger.residues)})",
        ],
        ["Computed in windows", ledger.in_windows],
        ["Normalised", ledger.normalised],
        [
            "Repeats of a sequence",
            f"{ledger.duplicates:,}; {report.duplicates.tokens_saved:,} tokens not computed again",
        ],
    ]


def _cost_rows(report: RunReport) -> list[Row]:
    measured, ran = report.measured, report.receipts
    memory = measured.peak_memory_bytes
    each = report.seconds_per_million_residues
    cost = "not known" if each is None else f"{_three_digits(each)} device seconds"
    return [
        ["Time of the steps", _seconds(measured.seconds)],
        ["Throughput", f"{_rate(measured.tokens_per_second)} tokens/s"],
        ["Cost of a million residues", cost],
        ["Peak memory", f"{memory / _GB:,.2f} GB" if memory else "not known"],
        ["Steps", f"{measured.steps:,} in {len(ran):,} shard{'s' if len(ran) != 1 else ''}"],
        ["Steps repeated smaller", sum(receipt.retries for receipt in ran)],
        ["Sequences repeated in float32", sum(receipt.recomputed_float32 for receipt in ran)],
    ]


def _cost_note(report: RunReport) -> str:
    return (
        "Summed over all shards, which may have run side by side; without loading the model. "
        f"Residues: the {report.planned.residues:,} that the model computed; where windows "
        "overlap they count more than once."
    )


def _packing_rows(report: RunReport) -> list[Row]:
    plan = report.planned
    other = plan.alternatives
    return [
        ["Tokens", f"{plan.tokens:,} in {plan.batches:,} batches"],
        ["Fewest possible batches", plan.lower_bound],
        ["Full, as planned", _percent_of(plan.efficiency)],
        ["Full, as it ran", _percent_of(report.measured.filled)],
        ["Next-fit decreasing", _percent_of(other.next_fit_decreasing.efficiency)],
        ["Padding, sorted by length", _percent_of(other.sorted_padding.efficiency)],
        ["Padding, unsorted", _percent_of(other.unsorted_padding.efficiency)],
    ]


def _model_rows(report: RunReport) -> list[Row]:
    model, ran = report.model, report.execution
    return [
        ["Model", model.model],
        ["Weights, SHA-256", model.weights_sha256],
        ["Layers", ", ".join(map(str, model.layers))],
        ["Pooling", POOLINGS[model.pooling]],
        ["Pseudo-perplexity", model.pseudo_perplexity.replace("-", " ")],
        ["Computed in", model.compute_dtype],
        *_agreement_rows(model.agreement),
        ["Written in", model.output_dtype],
        ["Longer sequences", _long_sequences(report.parameters)],
        ["Device", ", ".join(ran.device)],
        ["Attention", ", ".join(ran.backend)],
        ["Tokens a step", ", ".join(f"{tokens:,}" for tokens in ran.tokens_per_step)],
        ["Versions", "; ".join(_versions(found) for found in ran.versions)],
    ]


def _long_sequences(parameters: PlanParameters) -> str:
    limit = parameters.max_sequence_length
    if parameters.long_sequences == "truncate":
        return f"truncated to {limit:,} residues"
    return f"in windows of {limit:,} residues that overlap by {parameters.window_overlap:,}"


def _agreement_rows(agreement: Float32Agreement | None) -> list[Row]:
    if agreement is None:
        return []
    of, among = agreement, agreement.neighbourhood
    cosines = [
        ("Cosine to float32, embeddings", of.pooled_cosine_min, of.pooled_cosine_median),
        ("Cosine to float32, residues", of.residue_cosine_min, of.residue_cosine_median),
    ]
    if among:
        figures = among.centred_cosine_min, among.centred_cosine_median
        cosines.insert(1, ("Cosine to float32, embeddings less their mean", *figures))
    sample = f"{of.sequences} sequences of this sample"
    rows: list[Row] = [
        [what, f"least {least:.6f}, median {middle:.6f} ({sample})"]
        for what, least, middle in cosines
    ]
    if among:
        rows.append(
            ["Nearest neighbour as in float32", f"{_percent_of(among.nearest_kept)} ({sample})"]
        )
    return rows


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _percent(part: int, whole: int) -> str:
    return _percent_of(part / whole) if whole else "-"


def _percent_of(share: float) -> str:
    return f"{100 * share:.2f}%"


def _rate(tokens_per_second: float | None) -> str:
    return "not known" if tokens_per_second is None else f"{tokens_per_second:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
