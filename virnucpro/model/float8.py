"""ESM-2 with most of its matrix products in float8: faster for large models, and less exact.

Queries, keys and the feed-forward block are float8, three quarters of the arithmetic of a layer.
Values and the projection after attention keep 16 bits: the mean over a sequence that attention
takes averages the signal of the values but not the error of their weights, so that each of these
two would cost more closeness than all others together. Each row and each output channel has a
scale of its own, so no row depends on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from virnucpro.model.config import ModelConfig
from virnucpro.model.esm2 import PackedESM2, PackedLayer
from virnucpro.model.kernels import reference

__all__ = ["Float8ESM2"]


class Float8ESM2(PackedESM2):
    """ESM-2 for packed batches, in float8 and bfloat16."""

    @classmethod
    def from_state_dict(
        cls,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float8_e4m3fn,
        device: str | torch.device = "cpu",
        attention: str = "auto",
        head: bool = False,
    ) -> Self:
        """Make a model in evaluation mode; see `PackedESM2.from_state_dict`."""
        if dtype != torch.float8_e4m3fn:
            raise ValueError(f"float8_e4m3fn is wanted, not {dtype}")
        model = super().from_state_dict(
            config, state, dtype=torch.bfloat16, device=device, attention=attention, head=head
        )
        for layer in model._layers():
            _scale_weights(layer)
        return model

    def _residual_biases(self, layer: PackedLayer) -> tuple[Tensor, Tensor]:
        """Give what a layer's two blocks add to every row of the residual stream, float32.

        The weights of attention sum to one, so the bias of the values passes through it unchanged,
        and the projection makes of it one more constant.
        """
        attention, feed_forward = super()._residual_biases(layer)
        values = layer.qkv_proj.bias[2 * self.config.dim :].float()
        return attention + layer.out_proj.weight.float() @ values, feed_forward

    @property
    def precision(self) -> str:
        """The name of what the model computes in, as in the configuration and in receipts."""
        return "float8"

    def _project(self, layer: PackedLayer, x: Tensor, number: int) -> Tensor:
        """Give queries, keys and values of the normed rows, [T, 3 * dim]."""
        h, rows = self.kernels.layer_norm_float8(x, *self._norm(number))
        qkv = x.new_empty(len(x), 3 * self.config.dim)
        split = 2 * self.config.dim
        bias = layer.qkv_proj.bias[:split]  # that of the values is in the running biases
        self.kernels.float8_product(rows, layer.float8["qk"], bias, out=qkv[:, :split])
        torch.mm(h, layer.qkv_proj.weight.t(), out=qkv[:, split:])
        return qkv

    def _feed_forward(self, layer: PackedLayer, x: Tensor, number: int) -> None:
        """Add the feed-forward block of the normed rows to the residual stream, in place."""
        _, rows = self.kernels.layer_norm_float8(x, *self._norm(number), wide=False)
        hidden = x.new_empty(len(x), 4 * self.config.dim)
        self.kernels.float8_product(rows, layer.float8["fc1"], out=hidden)
        rows = self.kernels.bias_gelu_float8(hidden, layer.fc1.bias)
        x.add_(self.kernels.float8_product(rows, layer.float8["fc2"], out=torch.empty_like(x)))


def _scale_weights(layer: PackedLayer) -> None:
    """Scale weights into float8, each output channel by itself, and let their 16 bits go."""
    qkv = layer.qkv_proj.weight
    queries_and_keys = 2 * len(qkv) // 3
    layer.float8 = {
        "qk": reference.float8_rows(qkv[:queries_and_keys]),
        "fc1": reference.float8_rows(layer.fc1.weight),
        "fc2": reference.float8_rows(layer.fc2.weight),
    }
    layer.qkv_proj.weight = nn.Parameter(qkv[queries_and_keys:].clone(), requires_grad=False)
    del layer.fc1.weight, layer.fc2.weight
