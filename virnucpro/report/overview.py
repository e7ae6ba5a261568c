"""The report on all samples of a run: a table with one row each, and maps of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from virnucpro.errors import DataError
from virnucpro.files import write_bytes
from virnucpro.report.content import Model, SampleSummary, read_summary
from virnucpro.report.maps import map_by_length, map_by_sample, map_by_truncation
from virnucpro.report.pages import overview_page
from virnucpro.report.projection import project

__all__ = ["overview"]

_NOTICE = "demo model: its weights are random, so this map carries no biology"


def overview(results: Path, samples: Sequence[str], *, report_dir: Path) -> None:
    """Report on all samples.

    Args:
        results: holds ``{sample}/packing_report.json`` and ``{sample}/embeddings.h5ad``.
        samples: their names.
        report_dir: gets the page overview.html and the figures map_by_length.svg,
            map_by_sample.svg and map_by_truncation.svg.

    Raises:
        DataError: a file is missing, or the samples were embedded by different models.
        InputError: a report has another format number.
    """
    reports: list[SampleSummary] = []
    for sample in samples:
        path = results / sample / "packing_report.json"
        reports.append(read_summary(path))
        model, first = (replace(one.model, agreement=None) for one in (reports[-1], reports[0]))
        if model != first:  # of which what was measured of each sample is no part
            raise DataError(
                f"was embedded otherwise than {samples[0]}: {_differences(model, first)}",
                path=path,
                hint="run the workflow again, so that all samples have one model",
            )
    projection = project([results / sample / "embeddings.h5ad" for sample in samples])
    notice = _NOTICE if reports[0].demo else None
    map_by_length(projection, notice, report_dir / "map_by_length.svg")
    map_by_sample(projection, samples, notice, report_dir / "map_by_sample.svg")
    map_by_truncation(projection, notice, report_dir / "map_by_truncation.svg")
    write_bytes(report_dir / "overview.html", overview_page(reports).encode())


def _differences(found: Model, expected: Model) -> str:
    return "; ".join(
        f"{field} is {value}, not {getattr(expected, field)}"
        for field, value in vars(found).items()
        if value != getattr(expected, field)
    )
