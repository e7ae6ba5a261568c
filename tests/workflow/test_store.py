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
    run = snakemake(workdir, "plans", "--config", "store={paths: [one, two]}", *config)
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
    [("{paths: one}", "'one' is not of type 'array'"), ("{accept: any}", "'any' is not one of")],
)
def test_what_is_no_store_is_refused(fresh, config, message):
    run = snakemake(fresh(), "plans", "--config", f"store={config}")
    assert run.status == 1
    assert message in run.text
