"""The report's tables as pages: HTML that stands alone, without scripts, images or addresses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["ledger_page", "overview_page", "summary_page"]

_LISTED = 200
_LONG_TEXT = 70
_GB = 1e9
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; margin: 2em;
       max-width: 62em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 1.6em 0 0.4em; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.25em 1em 0.25em 0;
         border-bottom: 1px solid #ddd; white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.notice { border-left: 4px solid #D55E00; padding: 0.5em 1em; background: #fff4ec; }
.note { color: #555; } td.inner { padding-left: 1.5em; }
"""

_POOLINGS = {
    "mean": "mean over residues",
    "cls": "representation of the token before the first residue",
    "max": "largest value over residues",
    "none": "mean over residues; each residue in residues.h5",
}
_REASONS = {
    "empty": "no residues were left after normalising",
    "invalid_letters": "too many letters are no amino acids",
    "too_long": "longer than split.max_record_residues",
    "not_finite": "the model gave NaN or infinity, in float32 too",
    "out_of_range": "a value does not fit into the output's dtype",
    "out_of_memory": "the device's memory does not hold this one sequence",
}

Cell = str | int | float
Row = Sequence[Cell]


def summary_page(report: dict[str, Any]) -> str:
    """Show one sample's run at a glance.

    Args:
        report: of `run_report`.
    """
    return _page(
        f"Sample {report['sample']}",
        report["notice"],
        *_table("Result", _result_rows(report)),
        *_table("Time and cost", _cost_rows(report), _cost_note(report)),
        *_table("Packing", _packing_rows(report)),
        *_table("Model", _model_rows(report)),
        *_table(
            "Input",
            [[entry["file"], entry["records"], entry["sha256"]] for entry in report["inputs"]],
            header=["File", "Records", "SHA-256"],
        ),
    )


def ledger_page(report: dict[str, Any], quarantined: Iterable[dict[str, str]]) -> str:
    """Show where every record went, and list the first quarantined ones.

    Args:
        report: of `run_report`.
        quarantined: rows of the quarantine table; no more than are listed are read.
    """
    ledger = report["ledger"]
    read = ledger["read"]
    limit = report["parameters"]["max_sequence_length"]
    cut = f"{ledger['residues_left_out']:,} residues beyond {limit:,} left out; column truncated"
    fates: list[Row] = [
        ["Read from the input", read, _percent(read, read), ""],
        ["Embedded", ledger["embedded"], _percent(ledger["embedded"], read), "embeddings.h5ad"],
        ["Quarantined", ledger["quarantined"], _percent(ledger["quarantined"], read), "see below"],
    ]
    flags: list[Row] = [
        ["Truncated", ledger["truncated"], _percent(ledger["truncated"], read), cut],
        [
            "Computed in windows",
            ledger["in_windows"],
            _percent(ledger["in_windows"], read),
            f"longer than {limit:,} residues, all of them computed; column windows",
        ],
        [
            "Normalised",
            ledger["normalised"],
            _percent(ledger["normalised"], read),
            f"{ledger['letters_replaced']:,} letters became X; columns normalised, replaced",
        ],
        [
            "Repeats of a sequence",
            ledger["duplicates"],
            _percent(ledger["duplicates"], read),
            "computed once; equal in column key",
        ],
    ]
    reasons: list[Row] = [
        [reason, count, _percent(count, read), _REASONS.get(reason, "")]
        for reason, count in ledger["quarantined_by_reason"].items()
    ]
    rows: list[Row] = [
        [row["id"], row["file"], row["line"], row["length"], row["reason"], row["detail"]]
        for row in itertools.islice(quarantined, _LISTED)
    ]
    listed = "" if ledger["quarantined"] <= _LISTED else f" The first {_LISTED} are listed."
    where = f"All stand in quarantine.tsv.{listed}"
    return _page(
        f"Ledger of sample {report['sample']}",
        report["notice"],
        *_table("Every record, once", fates, header=["", "Records", "Share", "Where"], totals=True),
        *_table(
            "What was done to accepted records",
            flags,
            "A record may be counted in several of these rows.",
            header=["", "Records", "Share", "How to find them"],
        ),
        *_table("Why records were quarantined", reasons, header=["Reason", "Records", "Share", ""]),
        *_table(
            "Quarantined records",
            rows,
            where,
            header=["Id", "File", "Line", "Residues", "Reason", "Detail"],
        ),
    )


def overview_page(reports: Sequence[dict[str, Any]]) -> str:
    """Show all samples of a run, one row each.

    Args:
        reports: of `run_report`, one a sample.
    """
    rows: list[Row] = []
    for report in reports:
        ledger, measured = report["ledger"], report["measured"]
        rows.append(
            [
                report["sample"],
                ledger["read"],
                ledger["embedded"],
                ledger["truncated"],
                ledger["quarantined"],
                ledger["duplicates"],
                _percent_of(report["planned"]["efficiency"]),
                _seconds(measured["seconds"]),
                _rate(measured["tokens_per_second"]),
                ", ".join(report["execution"]["device"]),
            ]
        )
    header = [
        *("Sample", "Read", "Embedded", "Truncated", "Quarantined", "Repeats", "Packed", "Time"),
        *("Tokens/s", "Device"),
    ]
    note = (
        f"Model: {reports[0]['model']['model']}. Records in columns 2 to 6. Packed: share of real "
        "tokens in the planned batches. Time: of the steps on the device, without loading the "
        "model."
    )
    notices = [report["notice"] for report in reports if report["notice"]]
    title = f"{len(reports):,} sample{'s' if len(reports) != 1 else ''}"
    return _page(title, notices[0] if notices else None, *_table("", rows, note, header=header))


def _result_rows(report: dict[str, Any]) -> list[Row]:
    ledger = report["ledger"]
    return [
        ["Records read", ledger["read"]],
        ["Embedded", f"{ledger['embedded']:,} ({_percent(ledger['embedded'], ledger['read'])})"],
        ["Quarantined", ledger["quarantined"]],
        [
            "Truncated",
            f"{ledger['truncated']:,}; {ledger['residues_left_out']:,} of {ledger['residues']:,} "
            f"residues left out ({_percent(ledger['residues_left_out'], ledger['residues'])})",
        ],
        ["Computed in windows", ledger["in_windows"]],
        ["Normalised", ledger["normalised"]],
        [
            "Repeats of a sequence",
            f"{ledger['duplicates']:,}; {report['duplicates']['tokens_saved']:,} tokens not "
            "computed again",
        ],
    ]


def _cost_rows(report: dict[str, Any]) -> list[Row]:
    measured, ran = report["measured"], report["execution"]["shards"]
    memory = measured["peak_memory_bytes"]
    each = measured["seconds_per_million_residues"]
    cost = "not known" if each is None else f"{_three_digits(each)} device seconds"
    return [
        ["Time of the steps", _seconds(measured["seconds"])],
        ["Throughput", f"{_rate(measured['tokens_per_second'])} tokens/s"],
        ["Cost of a million residues", cost],
        ["Peak memory", f"{memory / _GB:,.2f} GB" if memory else "not known"],
        ["Steps", f"{measured['steps']:,} in {len(ran):,} shard{'s' if len(ran) != 1 else ''}"],
        ["Steps repeated smaller", sum(shard["retries"] for shard in ran)],
        ["Sequences repeated in float32", sum(shard["recomputed_float32"] for shard in ran)],
    ]


def _cost_note(report: dict[str, Any]) -> str:
    return (
        "Summed over all shards, which may have run side by side; without loading the model. "
        f"Residues: the {report['planned']['residues']:,} that the model computed; where windows "
        "overlap they count more than once."
    )


def _packing_rows(report: dict[str, Any]) -> list[Row]:
    plan = report["planned"]
    other = {name: values["efficiency"] for name, values in plan["alternatives"].items()}
    return [
        ["Tokens", f"{plan['tokens']:,} in {plan['batches']:,} batches"],
        ["Fewest possible batches", plan["lower_bound"]],
        ["Full, as planned", _percent_of(plan["efficiency"])],
        ["Full, as it ran", _percent_of(report["measured"]["filled"])],
        ["Next-fit decreasing", _percent_of(other["next_fit_decreasing"])],
        ["Padding, sorted by length", _percent_of(other["sorted_padding"])],
        ["Padding, unsorted", _percent_of(other["unsorted_padding"])],
    ]


def _model_rows(report: dict[str, Any]) -> list[Row]:
    model, ran = report["model"], report["execution"]
    return [
        ["Model", model["model"]],
        ["Weights, SHA-256", model["weights_sha256"]],
        ["Layers", ", ".join(map(str, model["layers"]))],
        ["Pooling", _POOLINGS[model["pooling"]]],
        ["Pseudo-perplexity", model["pseudo_perplexity"].replace("-", " ")],
        ["Computed in", model["compute_dtype"]],
        *_closeness_rows(model["closeness"]),
        ["Written in", model["output_dtype"]],
        ["Longer sequences", _long_sequences(report["parameters"])],
        ["Device", ", ".join(ran["device"])],
        ["Attention", ", ".join(ran["backend"])],
        ["Tokens a step", ", ".join(f"{tokens:,}" for tokens in ran["tokens_per_step"])],
        ["Versions", "; ".join(_versions(found) for found in ran["versions"])],
    ]


def _long_sequences(parameters: dict[str, Any]) -> str:
    limit = parameters["max_sequence_length"]
    if parameters["long_sequences"] == "truncate":
        return f"truncated to {limit:,} residues"
    return f"in windows of {limit:,} residues that overlap by {parameters['window_overlap']:,}"


def _closeness_rows(closeness: dict[str, Any] | None) -> list[Row]:
    if closeness is None:
        return []
    sample = f"{closeness['sequences']} sequences of this sample"
    return [
        [
            f"Cosine to float32, {what}",
            f"least {closeness[f'{kind}_cosine_min']:.6f}, "
            f"median {closeness[f'{kind}_cosine_median']:.6f} ({sample})",
        ]
        for kind, what in (("pooled", "embeddings"), ("residue", "residues"))
    ]


def _versions(versions: dict[str, Any]) -> str:
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


def _page(title: str, notice: str | None, *parts: str) -> str:
    warning = [f'<p class="notice">{escape(notice)}</p>'] if notice else []
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *warning,
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def _table(
    title: str,
    rows: Sequence[Row],
    note: str = "",
    *,
    header: Sequence[str] = (),
    totals: bool = False,
) -> list[str]:
    """Make a table under its title; nothing where there is no row."""
    if not rows:
        return []
    lines = [f"<h2>{escape(title)}</h2>"] if title else []
    lines += [f'<p class="note">{escape(note)}</p>'] if note else []
    lines.append('<div class="wide"><table>')
    if header:
        cells = (
            f"<th{_class(value)}>{escape(name)}</th>"
            for name, value in zip(header, rows[0], strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for number, row in enumerate(rows):
        inner = ' class="inner"' if totals and number else ""
        kind = inner or _class(row[0])
        first = f"<td{kind}>{escape(str(row[0]))}</td>" if header else _heading(row[0])
        rest = "".join(_cell(value, aligned=bool(header)) for value in row[1:])
        lines.append(f"<tr>{first}{rest}</tr>")
    return [*lines, "</table></div>"]


def _heading(value: Cell) -> str:
    return f"<th>{escape(str(value))}</th>"


def _cell(value: Cell, *, aligned: bool) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return f"<td{_class(value, aligned=aligned)}>{escape(text)}</td>"


def _class(value: Cell, *, aligned: bool = True) -> str:
    """Align numbers in columns, and let long texts (hashes, ids) break anywhere."""
    if aligned and (isinstance(value, int) or str(value).endswith("%")):
        return ' class="number"'
    return ' class="long"' if len(str(value)) > _LONG_TEXT else ""
