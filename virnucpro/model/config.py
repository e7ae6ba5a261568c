"""The shapes of ESM-2 models, and the names and shapes of their tensors.

Tensors go by fair-esm's names (``esm.model.esm2.ESM2``). A canonical state dict holds the tensors
of `expected_tensors`, and may hold those of `lm_head_tensors` (all or none) and the rotary
frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "KNOWN_MODELS",
    "ROTARY_FREQUENCIES",
    "VOCABULARY_SIZE",
    "ModelConfig",
    "expected_tensors",
    "list_names",
    "lm_head_tensors",
    "rotary_tensors",
    "shape_problems",
]

VOCABULARY_SIZE = 33

# ESM-2 was trained in float16 with the rotary frequencies as a buffer, so the published files hold
# them rounded to float16, and fair-esm computes with what the file holds. Computed anew, the angles
# of ESM-2 650M are off by up to 0.16 rad at position 1,000: they are weights like any other.
ROTARY_FREQUENCIES = "rotary.inv_freq"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an ESM-2 model.

    Attributes:
        name: what the model is called in logs, receipts and results.
        layers: transformer layers.
        dim: dimension of a token's representation.
        heads: attention heads of a layer.

    Raises:
        ValueError: a number is not positive, or `dim` is not a multiple of twice `heads` (rotary
            positions rotate pairs of a head's dimensions).
    """

    name: str
    layers: int
    dim: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.layers, self.dim, self.heads) < 1:
            raise ValueError(f"layers, dimension and heads of {self.name!r} must be positive")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dimension {self.dim} of {self.name!r} is not a multiple of twice "
                f"its {self.heads} heads"
            )

    @property
    def head_dim(self) -> int:
        """Dimension of one attention head."""
        return self.dim // self.heads

    def parameters(self, *, lm_head: bool = False) -> int:
        """Count the trained numbers, with or without the language-model head.

        The head's output matrix is the embedding matrix and counts once, as in fair-esm.
        """
        shapes = expected_tensors(self) | (lm_head_tensors(self) if lm_head else {})
        return sum(math.prod(shape) for shape in shapes.values())


def _known(name: str, layers: int, dim: int, heads: int) -> tuple[str, ModelConfig]:
    return name, ModelConfig(name, layers, dim, heads)


# The first is built in (see `virnucpro.model.demo`); the others are those of esm.pretrained.
KNOWN_MODELS: dict[str, ModelConfig] = dict(
    [
        _known("demo", 6, 320, 20),
        _known("esm2_t6_8M_UR50D", 6, 320, 20),
        _known("esm2_t12_35M_UR50D", 12, 480, 20),
        _known("esm2_t30_150M_UR50D", 30, 640, 20),
        _known("esm2_t33_650M_UR50D", 33, 1280, 20),
        _known("esm2_t36_3B_UR50D", 36, 2560, 40),
        _known("esm2_t48_15B_UR50D", 48, 5120, 40),
    ]
)


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return the tensors that every canonical state dict of this shape has, in file order."""
    dim = config.dim
    tensors: dict[str, Shape] = {"embed_tokens.weight": (VOCABULARY_SIZE, dim)}
    for i in range(config.layers):
        layer = f"layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= _linear(f"{layer}.self_attn.{projection}", dim, dim)
        tensors |= _layer_norm(f"{layer}.self_attn_layer_norm", dim)
        tensors |= _linear(f"{layer}.fc1", dim, 4 * dim)
        tensors |= _linear(f"{layer}.fc2", 4 * dim, dim)
        tensors |= _layer_norm(f"{layer}.final_layer_norm", dim)
    return tensors | _layer_norm("emb_layer_norm_after", dim)


def lm_head_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return the tensors of the language-model head; its output matrix is the embedding matrix."""
    return {
        **_linear("lm_head.dense", config.dim, config.dim),
        **_layer_norm("lm_head.layer_norm", config.dim),
        "lm_head.bias": (VOCABULARY_SIZE,),
    }


def rotary_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return the rotary frequencies (radians a position, float32), which a state dict may have."""
    return {ROTARY_FREQUENCIES: (config.head_dim // 2,)}


def shape_problems(config: ModelConfig, shapes: Mapping[str, Shape]) -> list[str]:
    """Compare the tensors that were found with those of a model; strict in both directions.

    Args:
        config: the model's shape.
        shapes: name and shape of every tensor found.

    Returns:
        One sentence a kind of problem; empty if the tensors are right.
    """
    head = lm_head_tensors(config)
    required = expected_tensors(config)
    if head.keys() & shapes.keys():
        required |= head
    allowed = required | rotary_tensors(config)
    problems = []
    if missing := [name for name in required if name not in shapes]:
        problems.append(f"missing tensors: {list_names(missing)}")
    if extra := sorted(shapes.keys() - allowed.keys()):
        problems.append(f"unexpected tensors: {list_names(extra)}")
    if wrong := [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in allowed.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]:
        problems.append(f"wrong shapes: {list_names(wrong)}")
    return problems


def list_names(names: Iterable[str], most: int = 4) -> str:
    """Join names for a message; of many, the first few and how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
