"""The plan cache: addressed by content, verified, and never the reason of a failure."""

import numpy as np
import pytest

from virnucpro.formats import PLAN_FORMAT
from virnucpro.plan import table
from virnucpro.plan.cache import PlanCache, plan_address
from virnucpro.plan.items import key_array
from virnucpro.plan.plan import make_plan, plan_parameters

KEYS = key_array([f"{row:032x}" for row in range(5)])
LENGTHS = np.array([9, 3, 5, 5, 1])
PARAMETERS = plan_parameters(24, 20, "truncate", 0)


def address(keys=KEYS, lengths=LENGTHS, **changes):
    return plan_address(keys, lengths, {**PARAMETERS, **changes})


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / "cache")


@pytest.fixture
def plan():
    return make_plan(KEYS, LENGTHS, token_budget=24, max_sequence_length=20)


def test_the_address_depends_on_everything_that_decides_a_plan():
    other_key = KEYS.copy()
    other_key[4, 15] ^= 1
    addresses = [
        address(),
        address(other_key),
        address(KEYS[:4], LENGTHS[:4]),
        address(lengths=LENGTHS + 1),
        address(token_budget=25),
        address(max_sequence_length=19),
        address(long_sequences="window"),
        address(algorithm="other"),
        address(window_overlap=1),
        address(format=table.PLAN_FORMAT + 1),
    ]
    assert len(set(addresses)) == len(addresses)
    assert address() == address(KEYS.copy(), LENGTHS.astype(np.int32))


def test_what_was_kept_is_found(cache, plan):
    assert cache.get(KEYS, LENGTHS, PARAMETERS) is None
    cache.put(address(), plan)
    assert cache.path(address()).parent.name == "plans"
    assert cache.get(KEYS, LENGTHS, PARAMETERS).content_hash == plan.content_hash


@pytest.mark.fault(11)
@pytest.mark.parametrize("kept", [0, 4, 300])
def test_a_damaged_file_is_told_and_not_used(cache, plan, caplog, kept):
    cache.put(address(), plan)
    path = cache.path(address())
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.get(KEYS, LENGTHS, PARAMETERS) is None
    assert "is not used and made again" in caplog.text
    assert address() in caplog.text


@pytest.mark.fault(12)
def test_a_plan_of_another_format_is_told_and_not_used(cache, plan, caplog, monkeypatch):
    cache.put(address(), plan)
    monkeypatch.setattr(table, "PLAN_FORMAT", PLAN_FORMAT + 1)
    assert cache.get(KEYS, LENGTHS, PARAMETERS) is None
    assert f"plan has format {PLAN_FORMAT}" in caplog.text


def test_a_plan_of_other_sequences_under_the_address_is_not_used(cache, plan, caplog):
    other = np.array([8, 3, 5, 5, 1])
    cache.put(address(lengths=other), plan)
    assert cache.get(KEYS, other, PARAMETERS) is None
    assert "another shard" in caplog.text


def test_a_plan_of_other_parameters_under_the_address_is_not_used(cache, plan, caplog):
    cache.put(address(token_budget=99), plan)
    assert cache.get(KEYS, LENGTHS, {**PARAMETERS, "token_budget": 99}) is None
    assert "of other parameters" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_and_no_error(tmp_path, plan, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = PlanCache(tmp_path / "file")
    cache.put(address(), plan)
    assert "not kept in the cache" in caplog.text
    assert cache.get(KEYS, LENGTHS, PARAMETERS) is None


def test_an_entry_that_cannot_be_read_is_told_and_no_error(cache, caplog):
    cache.path(address()).mkdir(parents=True)
    assert cache.get(KEYS, LENGTHS, PARAMETERS) is None
    assert "is not used and made again" in caplog.text
