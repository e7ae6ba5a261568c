"""The built-in demonstration model: ESM-2 8M's shape, seeded random weights, no biology.

It lets the whole workflow run without a download. Each number is made from the raw 64-bit output of
PCG64 (whose stream numpy guarantees) with arithmetic that IEEE 754 fixes, so that the weights have
the same bytes with every version of numpy and torch and on every machine.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virnucpro.model.config import KNOWN_MODELS, ModelConfig, expected_tensors, lm_head_tensors

__all__ = ["DemoSource", "demo_weights"]

_SEED = 33
_RECIPE = f"virnucpro demo weights, revision 2, PCG64 seed {_SEED}"
_PADDING = 1


class DemoSource:
    """The demonstration model as a source of weights (see `virnucpro.model.sources.Source`)."""

    name = "demo"
    demo = True
    files: tuple[Path, ...] = ()

    def fingerprint(self) -> str:
        """Hash the recipe, for there is no file to hash."""
        return hashlib.sha256(_RECIPE.encode()).hexdigest()

    def read(self) -> tuple[ModelConfig, dict[str, Tensor]]:
        """Make the weights."""
        config = KNOWN_MODELS[self.name]
        return config, demo_weights(config)


def demo_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Make random weights on the scale of an untrained ``esm.model.esm2.ESM2``.

    Args:
        config: the shape to make weights for.

    Returns:
        A canonical state dict, float32, with the language-model head.
    """
    bits = np.random.PCG64(_SEED)
    return {
        name: torch.from_numpy(_initial(bits, name, shape))
        for name, shape in (expected_tensors(config) | lm_head_tensors(config)).items()
    }


def _initial(bits: np.random.PCG64, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Initialise one tensor as fair-esm does (the embeddings uniform in place of normal)."""
    if "layer_norm" in name:
        return np.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=np.float32)
    values = _uniform(bits, shape, _bound(name, shape))
    if name == "embed_tokens.weight":
        values[_PADDING] = 0.0
    return values


def _bound(name: str, shape: tuple[int, ...]) -> float:
    """Return the largest absolute value that a tensor is initialised with."""
    fan_in = shape[-1]
    if name == "embed_tokens.weight":
        return math.sqrt(3.0)  # variance 1, as of nn.Embedding
    if len(shape) == 1:
        return 0.02
    if "self_attn" in name:
        gain = 1.0 if "out_proj" in name else math.sqrt(0.5)
        return gain * math.sqrt(6.0 / sum(shape))  # Xavier
    return 1.0 / math.sqrt(fan_in)  # nn.Linear


def _uniform(bits: np.random.PCG64, shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Draw from [-bound, bound): the upper 24 bits of each draw are exact in float32."""
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
    unit = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return (unit * np.float32(bound)).reshape(shape)
