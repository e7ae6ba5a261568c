"""Stores in the workflow."""

import json

import numpy as np
import pytest

from tests.unit.store.stores import make_request
from tests.workflow.snakemake_runs import Sample, snakemake
from virnucpro.plan.plan import read_plan
from virnucpro.store.store import Store

pytestmark = pytest.mark.workflow


def plans(workdir, *config):
    run = snakemake(workdir, "plans", "--config", "store=[one, two]", *config)
    assert run.status == 0, run.text
    return run


def test_plans_say_what_stores_have_and_again_once_they_have_more(fresh):
    workdir = fresh()
    run = plans(workdir)
    assert "the store has no rows of this model and configuration" in run.text
    assert plans(workdir).jobs == {}
    sample = Sample(workdir, "a")
    keys = read_plan(sample.plans / f"{sample.shards[0]}.parquet").sequence_keys
    values = {"embeddings": np.ones((len(keys), 1, 320), np.float32)}
    Store([workdir / "two"]).add(make_request(), keys, values)
    run = plans(workdir)
    assert "2 of 2 sequences; no job is left" in run.text
    assert dict(run.jobs) == {"request": 1, "plan_report": 1}
    (known,) = json.loads((sample.results / "plan_report.json").read_text())["known"]
    assert known["sequences"] == len(keys)
    assert plans(workdir).jobs == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("store=one", "'one' is not of type 'array'"),
        ("store=['one:two']", "'one:two' does not match"),
        ("store_accept=any", "'any' is not one of"),
    ],
)
def test_what_is_no_store_is_refused(fresh, config, message):
    run = snakemake(fresh(), "plans", "--config", config)
    assert run.status == 1
    assert message in run.text


def test_a_protein_that_a_store_knows_is_computed_nowhere_again(fresh, tmp_path):
    """Under other names, in another order and folder: the same bytes, and no model is loaded."""
    store, first, second, plain = tmp_path / "store", fresh(), fresh(), fresh()
    run = snakemake(first, "--config", f"store=[{store}]")
    assert run.status == 0, run.text
    for workdir in (second, plain):
        (workdir / "a.faa").write_text(">other name\nMLL\n>another\nMKT\n")
    run = snakemake(second, "--config", f"store=[{store}]")
    assert run.status == 0, run.text
    stored = Sample(second, "a")
    receipts = [
        json.loads((stored.embeddings / f"{shard}.json").read_text()) for shard in stored.shards
    ]
    assert all(receipt["known"] == receipt["sequences"] for receipt in receipts)
    assert all(receipt["steps"] == 0 for receipt in receipts)
    assert snakemake(plain).status == 0
    ours, theirs = (sample.results / "embeddings.h5ad" for sample in (stored, Sample(plain, "a")))
    assert ours.read_bytes() == theirs.read_bytes()
