"""A layer with most of its matrix products in float8: faster for large models, and less exact.

Queries, keys and the feed-forward network are float8, three quarters of the arithmetic of a layer.
Values and the projection after attention keep 16 bits: the mean over a sequence that attention
takes averages the signal of the values but not the error of their weights, so that each of these
two would cost more closeness than all others together. Each row and each output channel has a
scale of its own, so no row depends on another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

    queries_and_keys: Scaled
    expansion: Scaled  # fc1
    contraction: Scaled  # fc2

    def scale_weights(self) -> None:
        """Scale weights into float8, each output channel by itself, and let their 16 bits go."""
        qkv = self.qkv_proj.weight
        split = 2 * len(qkv) // 3
        self.queries_and_keys = reference.float8_rows(qkv[:split])
        self.expansion = reference.float8_rows(self.fc1.weight)
        self.contraction = reference.float8_rows(self.fc2.weight)
        self.qkv_proj.weight = nn.Parameter(qkv[split:].clone(), requires_grad=False)
        del self.fc1.weight, self.fc2.weight

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """Project the normed rows, [T, 3 * dim]."""
        kernels, split = self.backend.kernels, 2 * x.shape[1]
        h, rows = kernels.layer_norm_float8(x, *self.attention_norm.arguments)
        qkv = x.new_empty(len(x), 3 * x.shape[1])
        bias = self.qkv_proj.bias[:split]  # that of the values is in `residual_biases`
        kernels.float8_product(rows, self.queries_and_keys, bias, out=qkv[:, :split])
        torch.mm(h, self.qkv_proj.weight.t(), out=qkv[:, split:])
        return qkv

    def add_feed_forward(self, x: Tensor) -> None:
        """Add the feed-forward network of the normed rows to x [T, dim], in place."""
        kernels = self.backend.kernels
        _, rows = kernels.layer_norm_float8(x, *self.feed_forward_norm.arguments, wide=False)
        hidden = x.new_empty(len(x), 4 * x.shape[1])
        kernels.float8_product(rows, self.expansion, out=hidden)
        rows = kernels.bias_gelu_float8(hidden, self.fc1.bias)
        x.add_(kernels.float8_product(rows, self.contraction, out=torch.empty_like(x)))

    def residual_biases(self) -> tuple[Tensor, Tensor]:
        """Return what attention and feed-forward lack in every row, [dim] float32 each.

        The weights of attention sum to one, so the bias of the values passes through it unchanged,
        and the projection makes of it one more constant.
        """
        attention, feed_forward = super().residual_biases()
        values = self.qkv_proj.bias[2 * len(attention) :].float()
        return attention + self.out_proj.weight.float() @ values, feed_forward
