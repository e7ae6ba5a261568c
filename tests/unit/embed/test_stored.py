"""A shard with a store: known rows in place of computing them, with the bytes of a run without."""

import dataclasses
import os

import numpy as np
import pytest

from tests.unit.embed import fast as fast_module
from tests.unit.embed.builders import make_demo, make_shard, random_proteins
from virnucpro.embed import checkpoints as checkpoints_module
from virnucpro.embed import shard as shard_module
from virnucpro.embed.checkpoints import checkpoints_directory
from virnucpro.embed.job import EmbedOptions
from virnucpro.embed.known import fill_shard, look_up_shard
from virnucpro.embed.shard import embed_shard
from virnucpro.plan.plan import read_plan
from virnucpro.sequences.shards import read_shard
from virnucpro.store.store import Store

LONGEST = 120
CPU = EmbedOptions(device="cpu")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), LONGEST)


@pytest.fixture(scope="module")
def proteins():
    return random_proteins(24, longest=300)


@pytest.fixture
def options(tmp_path):
    return dataclasses.replace(CPU, store=(tmp_path / "store",))


@pytest.fixture
def fast(monkeypatch):
    fast_module.install(monkeypatch)
    return fast_module.Engine


def fill(files, options):
    """What a command does before it claims a device."""
    known = look_up_shard(files, options)
    return known and fill_shard(files, options, known)


def shard(folder, demo, sequences):
    windows = {"long_sequences": "window", "window_overlap": 20}
    return make_shard(folder, demo, sequences, LONGEST, **windows)


def no_model(*_, **__):
    raise AssertionError("the model is loaded")


def test_a_shard_of_which_all_is_known_needs_no_model_and_has_the_same_bytes(
    demo, proteins, options, tmp_path, monkeypatch
):
    first = shard(tmp_path / "one", demo, proteins)
    assert fill(first, options) is None
    assert not first.embeddings.exists()
    computed = embed_shard(first, options)
    assert (computed.known, computed.close) == (0, None)
    again = shard(tmp_path / "two", demo, proteins[::-1])
    monkeypatch.setattr(shard_module, "load_model", no_model)
    known = fill(again, options)
    assert (known.known, known.steps) == (24, 0)
    assert again.embeddings.read_bytes() == first.embeddings.read_bytes()
    assert known.request == computed.request
    assert dataclasses.replace(known, known=0, steps=computed.steps) == computed


def test_of_a_shard_that_is_known_in_part_the_rest_is_computed_to_the_same_bytes(
    demo, proteins, options, tmp_path
):
    embed_shard(shard(tmp_path / "one", demo, proteins), options)
    others = [*proteins[::2], *random_proteins(20, longest=300, seed=3)]
    plain, stored = (shard(tmp_path / name, demo, others) for name in ("plain", "stored"))
    expected = embed_shard(plain, CPU)
    assert fill(stored, options) is None
    receipt = embed_shard(stored, options)
    assert receipt.known == len({*proteins[::2]} & {*proteins})
    assert stored.embeddings.read_bytes() == plain.embeddings.read_bytes()
    assert receipt.array_sha256 == expected.array_sha256
    assert 0 < receipt.steps < expected.steps
    # and now the store knows both shards
    keys = read_plan(stored.plan).sequence_keys
    assert Store(options.store).look_up(receipt.request, keys).found.all()


def test_scores_are_known_too(demo, proteins, options, tmp_path):
    scored = dataclasses.replace(options, pseudo_perplexity="one-pass")
    first, again = (shard(tmp_path / name, demo, proteins) for name in ("one", "two"))
    embed_shard(first, scored)
    assert fill(again, scored) is None  # the token budget was measured without scores
    assert embed_shard(again, scored).known == 24
    scores = [files.extras["pseudo_perplexity"].read_bytes() for files in (first, again)]
    assert scores[0] == scores[1]


@pytest.mark.fault(60)
def test_a_row_that_is_damaged_is_computed(demo, proteins, options, tmp_path):
    first = shard(tmp_path / "one", demo, proteins)
    embed_shard(first, options)
    (stored,) = (tmp_path / "store").glob("*/*/embeddings.npy")
    content = bytearray(stored.read_bytes())
    content[-5] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(content)
    again = shard(tmp_path / "two", demo, proteins)
    assert fill(again, options) is None
    assert not again.embeddings.exists()
    assert embed_shard(again, options).known == 23
    assert again.embeddings.read_bytes() == first.embeddings.read_bytes()


def test_another_request_takes_nothing(demo, proteins, options, tmp_path):
    embed_shard(shard(tmp_path / "one", demo, proteins), options)
    for changes in ({"pooling": "max"}, {"layers": (3,)}, {"output_dtype": "float16"}):
        files = shard(tmp_path / "-".join(changes), demo, proteins)
        receipt = embed_shard(files, dataclasses.replace(options, **changes))
        assert receipt.known == 0


def test_rows_of_other_tokens_per_step_are_taken_where_close_ones_are_and_flagged(
    demo, proteins, options, tmp_path
):
    other = dataclasses.replace(options, token_budget=256)
    embed_shard(shard(tmp_path / "one", demo, proteins), other)
    assert fill(shard(tmp_path / "two", demo, proteins), options) is None
    close = dataclasses.replace(options, store_accept="close")
    receipt = fill(shard(tmp_path / "three", demo, proteins), close)
    assert receipt.close == list(range(24))
    assert receipt.request.tokens_per_step == 512


def test_a_run_that_keeps_residues_gives_its_means_and_takes_none(
    demo, proteins, options, tmp_path
):
    rich = dataclasses.replace(options, pooling="none")
    for name in ("one", "two"):
        files = shard(tmp_path / name, demo, proteins)
        assert fill(files, rich) is None
        assert embed_shard(files, rich).known == 0
    assert len(Store(options.store).segments()) == 1


@pytest.mark.fault(60)
def test_a_store_that_cannot_be_written_costs_the_shard_nothing(demo, proteins, tmp_path, caplog):
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    options = dataclasses.replace(CPU, store=(nowhere / "store",))
    files = shard(tmp_path / "one", demo, proteins)
    assert embed_shard(files, options).known == 0
    assert "kept in no store" in caplog.text


def test_rows_of_a_shard_with_a_step_that_was_split_are_not_stored(fast, tmp_path, caplog):
    files = fast_module.make_files(tmp_path / "shard")
    options = dataclasses.replace(fast_module.CPU, store=(tmp_path / "store",))
    receipt = embed_shard(files, options)
    assert receipt.retries > 0
    assert receipt.request is None
    assert not os.path.exists(tmp_path / "store")
    assert "kept in no store" in caplog.text


@pytest.mark.fault(1)
def test_checkpoints_of_a_run_before_the_store_knew_more_give_way(fast, tmp_path, monkeypatch):
    """Its steps hold other items now: they are dropped, and the bytes are the same."""
    monkeypatch.setattr(fast_module.Engine, "splits", False)
    plain = fast_module.make_files(tmp_path / "plain")
    embed_shard(plain, fast_module.CPU)
    store = tmp_path / "store"
    options = dataclasses.replace(fast_module.CPU, store=(store,))

    class EndedError(BaseException):
        pass

    def end(launched):
        if launched == begun + 30:
            raise EndedError

    files, begun = fast_module.make_files(tmp_path / "shard"), fast.launched
    monkeypatch.setattr(checkpoints_module, "_SECONDS", 0.0)
    fast.before = staticmethod(end)
    with pytest.raises(EndedError):
        embed_shard(files, options)
    fast.before = staticmethod(lambda _: None)
    assert list(checkpoints_directory(files.embeddings).iterdir())
    some = read_shard(files.shard).residues[::2]
    embed_shard(fast_module.make_files(tmp_path / "half", proteins=some), options)
    assert 100 < embed_shard(files, options).known <= 150
    assert files.embeddings.read_bytes() == plain.embeddings.read_bytes()


def test_a_shard_without_sequences_is_nothing_to_ask_for(demo, options, tmp_path):
    files = shard(tmp_path / "none", demo, [])
    receipt = fill(files, options) or embed_shard(files, options)
    assert receipt.known == 0
    assert np.load(files.embeddings).shape == (0, 1, 320)


def test_stores_are_looked_up_once_unless_the_request_is_another(
    demo, proteins, options, tmp_path, monkeypatch
):
    looked = []
    look_up = Store.look_up

    def counted(self, request, keys):
        looked.append(request)
        return look_up(self, request, keys)

    monkeypatch.setattr(Store, "look_up", counted)
    files = shard(tmp_path / "one", demo, proteins)
    known = look_up_shard(files, options)
    embed_shard(files, options, known=known)
    assert len(looked) == 1
    again = shard(tmp_path / "two", demo, proteins)
    embed_shard(again, dataclasses.replace(options, token_budget=256), known=known)
    assert [request.tokens_per_step for request in looked] == [512, 256]
