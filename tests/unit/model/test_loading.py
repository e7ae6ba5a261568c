"""Loading a converted model: quick, and never unchecked."""

import subprocess
import sys

import pytest
import torch

from virnucpro.errors import DataError
from virnucpro.files import sha256_in_background
from virnucpro.model.loading import load_model
from virnucpro.model.weights import fetch_model

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    files = folder / "demo.safetensors", folder / "demo.json"
    fetch_model("demo", *files)
    return files


@pytest.mark.parametrize("begun_before", [False, True])
def test_model_is_loaded_and_checked(demo, begun_before):
    sha256 = sha256_in_background(demo[0]) if begun_before else None
    model = load_model(*demo, **CPU, sha256=sha256)
    assert (model.config.name, model.dtype, model.training) == ("demo", torch.float32, False)


def test_a_flipped_bit_is_found(demo, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(demo[0].read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match="sha256"):
        load_model(damaged, demo[1], **CPU)


def test_missing_weights_are_named(demo, tmp_path):
    with pytest.raises(DataError, match="absent"):
        load_model(tmp_path / "absent.safetensors", demo[1], **CPU)


def test_loading_does_not_import_the_compiler_of_torch(demo):
    """It did, for random weights that nobody wanted: 2 to 4 seconds of every job."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from virnucpro.model.loading import load_model\n"
        "weights, receipt = map(Path, sys.argv[1:])\n"
        "load_model(weights, receipt, dtype=torch.float16, device=torch.device('cpu'))\n"
        "raise SystemExit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, demo)], check=True)
