"""The code that older cards run, with its numbers. Run with ``pytest -m gpu`` on a Hopper card.

Triton makes other code for an A100 (compute capability 8.0), an RTX 3090 (8.6) or an RTX 4090 (8.9)
than for an H100. All tests of the kernels run with it here, in a process of their own, under the
bounds of the code for this card.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
ALWAYS = {
    "_rotate_keys_kernel",
    "_attention_kernel",
    "_layer_norm_kernel",
    "_bias_gelu_kernel",
    "_pool_mean_kernel",
}


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper card",
)
@pytest.mark.parametrize("capability", [80, 86, 89])
def test_code_for_older_cards_gives_the_same_numbers(capability, tmp_path):
    given = {
        "COMPILE_FOR": str(capability),
        "COMPILED": str(tmp_path / "compiled.json"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "tests.unit.model.kernels.older", "-m", "gpu"),
            "tests/unit/model/kernels/test_cuda.py",
        ],
        cwd=ROOT,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    compiled = json.loads((tmp_path / "compiled.json").read_text())
    names = {kernel["name"] for kernel in compiled}
    assert names == ALWAYS | ({"_bias_gelu_float8_kernel"} if capability == 89 else set())
    assert {kernel["target"] for kernel in compiled} == {f"sm_{capability}"}
    assert not any(kernel["wgmma"] for kernel in compiled)  # only Hopper has these instructions
