"""What a store holds of one shard is, to the bit, what another shard would compute."""

import dataclasses

import numpy as np
import pytest

from tests.unit.embed.builders import make_demo, make_shard, random_proteins
from tests.unit.store.stores import make_request
from virnucpro.embed.job import EmbedOptions
from virnucpro.embed.shard import embed_shard
from virnucpro.plan.plan import read_plan
from virnucpro.store.store import Store

LONGEST = 120
CPU = EmbedOptions(device="cpu", token_budget=512)
OPTIONS = {
    "mean": CPU,
    "layers": dataclasses.replace(CPU, layers=(0, 3, -1), output_dtype="float16"),
    "max, scored": dataclasses.replace(CPU, pooling="max", pseudo_perplexity="one-pass"),
    "bfloat16": dataclasses.replace(CPU, dtype="bfloat16", pooling="cls"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), LONGEST)


def embedded(folder, demo, sequences, options):
    """Embed a shard, sequences that are too long in windows; gives its keys and its arrays."""
    windows = {"long_sequences": "window", "window_overlap": 20}
    files = make_shard(folder, demo, sequences, LONGEST, **windows)
    receipt = embed_shard(files, options)
    arrays = {"embeddings": np.load(files.embeddings, allow_pickle=False)}
    arrays |= {name: np.load(files.extras[name], allow_pickle=False) for name in options.extras}
    return read_plan(files.plan).sequence_keys, arrays, receipt


@pytest.mark.parametrize("case", OPTIONS)
def test_rows_of_one_shard_stand_in_for_computing_them_in_another(case, demo, tmp_path):
    options, store = OPTIONS[case], Store([tmp_path / "store"])
    proteins = random_proteins(24, longest=300)
    first, arrays, receipt = embedded(tmp_path / "one", demo, proteins, options)
    request = make_request(
        layers=receipt.layers,
        pooling=options.pooling,
        pseudo_perplexity=options.pseudo_perplexity,
        compute_dtype=receipt.compute_dtype,
        output_dtype=options.output_dtype,
    )
    assert store.add(request, first, arrays) == 24
    others = [*proteins[::2], *random_proteins(20, longest=200, seed=3), proteins[0]]
    keys, expected, _ = embedded(tmp_path / "two", demo, others, options)
    taken = {name: np.zeros_like(array) for name, array in expected.items()}
    filled = store.fill(store.look_up(request, keys), taken).filled
    assert filled.sum() >= 12
    assert not filled.all()
    for name, array in expected.items():
        assert taken[name][filled].tobytes() == array[filled].tobytes(), name
