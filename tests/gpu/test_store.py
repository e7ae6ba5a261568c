"""A store on a real CUDA device: known rows beside computed ones, to the bytes of a run without."""

import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch

from tests.unit.embed.builders import make_demo, make_shard, random_proteins
from virnucpro.embed.job import EmbedOptions
from virnucpro.embed.known import fill_shard, look_up_shard
from virnucpro.embed.shard import embed_shard

pytestmark = pytest.mark.gpu

LONGEST = 120
CASES = {
    "float16": {},
    "layers": {"layers": (0, 3, -1), "output_dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16", "pooling": "max"},
    "float8": {"dtype": "float8"},
    "scores": {"pseudo_perplexity": "one-pass"},
}


@pytest.fixture(params=CASES)
def options(request):
    return EmbedOptions(device="cuda", **CASES[request.param])


@pytest.fixture
def demo(options, tmp_path):
    """The demo model, converted, with its token budget on the device."""
    asked = dataclasses.asdict(options)
    names = ("device", "dtype", "layers", "pooling", "pseudo_perplexity", "output_dtype")
    return make_demo(tmp_path, LONGEST, **{name: asked[name] for name in names})


def fill(files, options):
    """What a command does before it claims a device."""
    known = look_up_shard(files, options)
    return known and fill_shard(files, options, known)


def shard(folder, demo, sequences):
    windows = {"long_sequences": "window", "window_overlap": 20}
    return make_shard(folder, demo, sequences, LONGEST, **windows)


@pytest.mark.fault(60)
def test_rows_of_a_store_stand_in_for_computing_them(options, demo, tmp_path):
    proteins = random_proteins(400, longest=300)
    stored = dataclasses.replace(options, store=(tmp_path / "store",))
    first = shard(tmp_path / "one", demo, proteins)
    computed = embed_shard(first, stored)
    assert (computed.known, computed.retries) == (0, 0)
    others = [*proteins[::2], *random_proteins(300, longest=300, seed=3)]
    plain, mixed = (shard(tmp_path / name, demo, others) for name in ("plain", "mixed"))
    expected = embed_shard(plain, options)
    receipt = embed_shard(mixed, stored)
    assert receipt.known >= 190
    assert receipt.steps < expected.steps or expected.steps == 1
    assert mixed.embeddings.read_bytes() == plain.embeddings.read_bytes()
    again = shard(tmp_path / "again", demo, proteins[::-1])
    known = fill(again, stored)
    assert known.known == computed.sequences
    assert again.embeddings.read_bytes() == first.embeddings.read_bytes()


def test_a_shard_of_which_all_is_known_touches_no_device(demo, options, tmp_path):
    proteins = random_proteins(50, longest=100)
    stored = dataclasses.replace(options, store=(tmp_path / "store",))
    embed_shard(shard(tmp_path / "one", demo, proteins), stored)
    files = shard(tmp_path / "two", demo, proteins)
    code = (
        "import pickle, sys, torch\n"
        "from virnucpro.embed.known import fill_shard, look_up_shard\n"
        "files, options = pickle.load(open(sys.argv[1], 'rb'))\n"
        "known = look_up_shard(files, options)\n"
        "assert fill_shard(files, options, known).known == 50\n"
        "assert not torch.cuda.is_initialized()\n"
    )

    (tmp_path / "call").write_bytes(pickle.dumps((files, stored)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "call")], check=True)
    assert torch.cuda.is_initialized()
