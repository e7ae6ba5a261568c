"""A plugin of pytest: Triton compiles for an older card than the one that the tests run on.

    COMPILE_FOR=80 COMPILED=compiled.json TRITON_CACHE_DIR=$(mktemp -d) \\
      python -m pytest -p tests.unit.model.kernels.older -m gpu tests/unit/model/kernels

Triton is told that the device has this compute capability, so it takes every decision (matrix
instructions, copies, pipelining) for that card. Only the last step, from PTX to machine code, names
the card at hand: NVIDIA's newer cards run the PTX of older ones. What was compiled is written to
the file $COMPILED, as JSON. $TRITON_CACHE_DIR must be a folder of its own: the cache would take
this machine code for the older card's.
"""

import json
import os
import re
from pathlib import Path

import pytest

compiled = []


def pytest_configure(config: pytest.Config) -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver

    major, minor = torch.cuda.get_device_capability()
    pretend(CUDABackend, 10 * major + minor)
    target = GPUTarget("cuda", int(os.environ["COMPILE_FOR"]), 32)
    driver.active.get_current_target = lambda: target


def pretend(backend: type, here: int) -> None:
    """Let the backend assemble all PTX for the capability `here`, and keep what it was made for."""
    assemble = backend.make_cubin

    def make_cubin(self, ptx, metadata, options, capability):
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
        compiled.append({"name": metadata["name"], "target": target, "wgmma": "wgmma" in ptx})
        return assemble(self, ptx, metadata, options, here)

    backend.make_cubin = make_cubin


def pytest_sessionfinish(session: pytest.Session) -> None:
    Path(os.environ["COMPILED"]).write_text(json.dumps(compiled))
