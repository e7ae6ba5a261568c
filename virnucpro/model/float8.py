"""A layer whose feed-forward network is in float8: faster for large models, and less exact.

The feed-forward network is two thirds of the arithmetic of a layer's products. Attention keeps 16
bits: queries and keys in float8 cost single residues and nearest neighbours as much as all the rest
together. The mean over a sequence that attention takes averages the signal of the values but not
the error of their weights, so that values and the projection after attention would cost still more.
Each row and each output channel has a scale of its own, so no row depends on another.
"""

from __future__ import annotations

from torch import Tensor

from virnucpro.model.esm2 import Block, PackedESM2
from virnucpro.model.kernels import reference

__all__ = ["Float8Block", "Float8ESM2"]

Scaled = tuple[Tensor, Tensor]
"""A float8 matrix [out, in], and the scale of each of its rows [out, 1] float32."""


class Float8ESM2(PackedESM2):
    """ESM-2 with layers of `Float8Block`, the rest in bfloat16."""

    @property
    def precision(self) -> str:
        """The name of what the model computes in, as in the configuration and in receipts."""
        return "float8"


class Float8Block(Block):
    """One layer in float8 and bfloat16; `scale_weights` goes between loading and use."""

    expansion: Scaled  # fc1
    contraction: Scaled  # fc2

    def scale_weights(self) -> None:
        """Scale weights into float8, each output channel by itself, and let their 16 bits go."""
        self.expansion = reference.float8_rows(self.fc1.weight)
        self.contraction = reference.float8_rows(self.fc2.weight)
        del self.fc1.weight, self.fc2.weight

    def add_feed_forward(self, x: Tensor) -> None:
        """Add the feed-forward network of the normed rows to x [T, dim], in place."""
        kernels = self.backend.kernels
        rows = kernels.layer_norm_float8(x, *self.feed_forward_norm.arguments)
        hidden = kernels.float8_product(rows, self.expansion)  # [T, 4 * dim]
        rows = kernels.bias_gelu_float8(hidden, self.fc1.bias)
        x.add_(kernels.float8_product(rows, self.contraction))
