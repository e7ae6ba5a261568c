from collections import Counter

import numpy as np
import pytest

from tests.unit.samples import Sample, random_records
from virnucpro.merge import records as records_module
from virnucpro.plan.parameters import PlanParameters
from virnucpro.report.summaries import summarise_records


@pytest.mark.parametrize("rows", [7, 1 << 17])
@pytest.mark.parametrize("count", [2, 100])
def test_records_are_counted_by_length_and_by_sequence(tmp_path, monkeypatch, count, rows) -> None:
    monkeypatch.setattr(records_module, "_MANY_ROWS", rows)
    sample = Sample(tmp_path, random_records(count))
    summary = summarise_records(sample.records)
    residues = [residues for *_, residues in sample.records_in]
    assert dict(zip(summary.lengths, summary.counts, strict=True)) == Counter(map(len, residues))
    assert dict(zip(summary.copies, summary.sequences, strict=True)) == Counter(
        Counter(residues).values()
    )
    assert summary.records == count
    assert summary.residues == sum(map(len, residues))
    beyond = [len(one) - 20 for one in residues if len(one) > 20]
    assert summary.truncated(PlanParameters(64, 20)) == (len(beyond), sum(beyond))
    assert summary.truncated(PlanParameters(64, 20, "window")) == (0, 0)
    assert summary.copies.dtype == np.int64
