"""What a command that computes does before torch is imported."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

from virnucpro.embed.device_lock import claim_device
from virnucpro.files import sha256_in_background

__all__ = ["claim_gpu", "keep_kernels"]


def keep_kernels(cache_dir: Path | None) -> None:
    """Let Triton keep what it compiles below a folder; it asks when it is imported."""
    if cache_dir is not None:
        os.environ.setdefault("TRITON_CACHE_DIR", str((cache_dir / "triton").absolute()))


def claim_gpu(device: str, weights: Path) -> tuple[str, Future[str]]:
    """Claim a device, and begin what can go on beside the imports.

    Args:
        device: as on the command line.
        weights: the file to hash; that takes as long as the imports of torch.

    Returns:
        The device to use, and the hash of the weights to come.
    """
    sha256 = sha256_in_background(weights)
    return claim_device(device), sha256
