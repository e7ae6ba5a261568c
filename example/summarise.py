"""Print where a run's results are and its main figures: `python example/summarise.py results`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def summarise(folder: Path) -> str:
    """Say in a few lines what the folder of one sample holds.

    Args:
        folder: ``results/{sample}`` of a finished run.
    """
    report = json.loads((folder / "packing_report.json").read_text())
    ledger, planned, measured = report["ledger"], report["planned"], report["measured"]
    lines = [
        f"{report['sample']}: {ledger['read']} records, {ledger['embedded']} embedded, "
        f"{ledger['quarantined']} quarantined",
        f"  {planned['tokens']} tokens in {planned['batches']} batches, "
        f"{planned['efficiency']:.2%} of them full; {measured['seconds']:.1f} s in the model",
        f"  embeddings  {folder / 'embeddings.h5ad'}",
        f"  left out    {folder / 'quarantine.tsv'}",
        f"  report      {folder / 'report' / 'summary.html'}",
    ]
    if report["notice"]:
        lines.append(f"  note        {report['notice']}")
    return "\n".join(lines)


def main() -> None:
    """Summarise every sample of the results folder."""
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    for report in sorted(results.glob("*/packing_report.json")):
        print(summarise(report.parent))
    print("All sheets of the report on one page: .venv/bin/snakemake --report report.html")


if __name__ == "__main__":
    main()
