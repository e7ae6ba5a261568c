"""Golden bytes: what a store holds of an engine must be what this engine computes.

A store takes an earlier row in place of computing it for as long as `formats.ENGINE_VERSION` is the
same. Where these bytes change, raise it (and EMBED_FORMAT), and write the new ones here.
"""

import hashlib
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.unit.embed.builders import random_proteins
from virnucpro.formats import ENGINE_VERSION

# Processors round sums in another order by the width of their vectors: all are held to the oldest.
ANY_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
WHERE = ("x86_64", "2.13.0")  # another torch may round otherwise, and is another request
PLANS = {"mean": [], "windows": ["--long-sequences=window", "--window-overlap=20"]}
READOUTS = {
    "mean": [],
    "windows": ["--layers=0", "--layers=6", "--pseudo-perplexity=one-pass", "--pooling=max"],
}
GOLDEN = {  # engine version, case -> SHA-256 of the arrays' values
    (2, "mean"): "397c5b4a4800080dd9a50f6cec8a91e51d8426319621baf5f5928092cd84706c",
    (2, "windows"): "559843883170a818d8b4ad5801db0c8853f54cdf24931017f3e03e367a0da2ad",
}


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, "-m", "virnucpro", *command],
        cwd=folder,
        env={**os.environ, **ANY_PROCESSOR},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A sample and the demo model."""
    folder = tmp_path_factory.mktemp("golden")
    fasta = "".join(f">p{n}\n{p.decode()}\n" for n, p in enumerate(random_proteins(40)))
    (folder / "in.faa").write_text(fasta)
    run(folder, "split", "in.faa", "--sample=s", "--shards=shards", "--records=records.parquet")
    run(folder, "model", "fetch", "demo", "--weights=w.safetensors", "--receipt=w.json")
    return folder


@pytest.mark.skipif(
    (platform.machine(), torch.__version__.partition("+")[0]) != WHERE,
    reason="the golden bytes are of {} and torch {}".format(*WHERE),
)
@pytest.mark.parametrize("case", PLANS)
def test_the_engine_gives_the_bytes_that_stores_hold_of_it(demo, case):
    (shard,) = (demo / "shards").glob("*.fasta")
    sizes = ["--max-sequence-length=120", *PLANS[case]]
    run(
        *(demo, "plan", *sizes, "--token-budget=512", f"--plan={case}.parquet"),
        *(f"--report={case}.json", str(shard)),
    )
    model = ["--weights=w.safetensors", "--device=cpu", *READOUTS[case]]
    run(
        *(demo, "budget", *model, "--plan-token-budget=512", "--max-sequence-length=120"),
        *("--receipt=w.json", f"--out={case}.budget.json"),
    )
    run(
        *(demo, "embed", *model, f"--plan={case}.parquet", f"--budget={case}.budget.json"),
        *(f"--embeddings={case}.npy", f"--receipt={case}.receipt.json", f"--step-log={case}.tsv"),
        *("--model-receipt=w.json", "--token-budget=512", str(shard)),
    )
    digest = hashlib.sha256()
    for path in sorted(demo.glob(f"{case}*.npy")):
        digest.update(np.load(path, allow_pickle=False).tobytes())
    assert digest.hexdigest() == GOLDEN.get((ENGINE_VERSION, case)), (
        "the engine gives other bits: raise formats.ENGINE_VERSION, and see this file's docstring"
    )
