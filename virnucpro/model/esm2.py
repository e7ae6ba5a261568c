"""ESM-2 on packed tokens: fair-esm's network and numbers, without its padding.

The network is that of ``esm.model.esm2.ESM2`` (Lin et al. 2023, doi:10.1126/science.ade2574):
pre-norm layers, rotary positions that restart in every sequence, erf GELU, and a final LayerNorm
on the last representation only. Tokens of all sequences stand end to end in one row, so every
matrix product works on real tokens; only attention needs to know where sequences end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro.errors import InputError
from virnucpro.model.attention import Backend, select_attention
from virnucpro.model.config import ModelConfig

__all__ = ["PackedESM2"]

# ESM-2 was trained with 15% of the residues chosen, 80% of them masked; at inference nothing is
# masked, and the embeddings are scaled by what was visible in training.
_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_VOCABULARY = 33
_PADDING = 1
_ROTARY_BASE = 10000.0


class PackedLayer(nn.Module):
    """One transformer layer on packed tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Backend, segments: Any
    ) -> Tensor:
        """Apply the layer to ``x`` [T, dim]."""
        T, dim = x.shape
        qkv = self.qkv_proj(self.self_attn_layer_norm(x)).view(T, 3, self.heads, -1)
        q, k, v = qkv.unbind(1)  # [T, H, D] each
        out = attend(_rotate(q, *rotary), _rotate(k, *rotary), v, segments)
        x = x + self.out_proj(out.reshape(T, dim))
        hidden: Tensor = F.gelu(self.fc1(self.final_layer_norm(x)))  # [T, 4 dim]
        y: Tensor = x + self.fc2(hidden)
        return y


class PackedESM2(nn.Module):
    """ESM-2 for packed batches.

    Build it with `from_state_dict`; a bare instance has random weights.

    Attributes:
        config: name, layers, dimension and heads.
        attend: the attention backend in use.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(_VOCABULARY, config.dim, padding_idx=_PADDING)
        self.layers = nn.ModuleList(PackedLayer(config) for _ in range(config.layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.dim)
        self.attend: Backend
        self._rotary: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_state_dict(
        cls,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attention: str = "auto",
    ) -> PackedESM2:
        """Make a model in evaluation mode from canonical weights.

        Args:
            config: the network's shape.
            state: fair-esm's names and shapes (see `virnucpro.model.weights`); the language-model
                head is not used here.
            dtype: what the model computes in.
            device: where it runs.
            attention: ``auto``, ``sdpa`` or ``varlen``.

        Raises:
            RuntimeError: a tensor is missing, too many or of another shape.
            InputError: the attention backend cannot run there.
        """
        device = torch.device(device)
        with torch.device("meta"):
            model = cls(config)
        weights = {
            name: tensor.to(device=device, dtype=dtype)
            for name, tensor in _packed_names(state, config.layers).items()
        }
        model.load_state_dict(weights, strict=True, assign=True)
        model.attend, _ = select_attention(attention, device, dtype)
        return model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.embed_tokens.weight.dtype

    def resolve_layer(self, layer: int) -> int:
        """Turn a layer counted from the end (-1 is the last) into one counted from 1.

        Raises:
            InputError: there is no such layer.
        """
        last = self.config.layers
        resolved = layer + last + 1 if layer < 0 else layer
        if not 0 <= resolved <= last:
            raise InputError(
                f"layer {layer}: this model has layers 0 (embeddings) to {last}",
                hint="negative numbers count from the end, -1 is the last layer",
            )
        return resolved

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        layers: Sequence[int],
    ) -> dict[int, Tensor]:
        """Compute the representations that fair-esm's ``repr_layers`` gives.

        Args:
            tokens: [T] int64, BOS and EOS of each sequence included.
            positions: [T] int32 or int64, restarting at 0 in each sequence.
            cu_seqlens: [B+1] int32, cumulative lengths in tokens, from 0 to T.
            max_seqlen: an upper bound of the lengths, in tokens.
            layers: 0 for the embeddings, 1 to the number of layers, or negative from the end.

        Returns:
            For each layer asked for (counted from 0, as resolved), [T, dim] in the model's dtype.
            The last one has the final LayerNorm, the others have not.

        Raises:
            InputError: a layer does not exist.
        """
        wanted = {self.resolve_layer(layer) for layer in layers}
        segments = self.attend.segments(cu_seqlens, max_seqlen)
        cos, sin = self.rotary_tables(max_seqlen)
        index = positions.long()
        rotary = (cos[index].unsqueeze(1), sin[index].unsqueeze(1))  # [T, 1, D/2]

        x = self.embed_tokens(tokens) * _TOKEN_DROPOUT_SCALE  # [T, dim]
        representations = {0: x} if 0 in wanted else {}
        last = max(wanted)
        for i, layer in enumerate(self.layers, start=1):
            if i > last:
                break
            x = layer(x, rotary, self.attend, segments)
            if i in wanted:
                representations[i] = self.emb_layer_norm_after(x) if i == len(self.layers) else x
        return representations

    def rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Give cosines and sines, [positions or more, head_dim / 2] float32 each.

        Angles are computed in float32 whatever the model's dtype: in 16 bits, neighbouring
        positions beyond a few hundred would share an angle.
        """
        if self._rotary is None or self._rotary[0].shape[0] < positions:
            head_dim = self.config.head_dim
            exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=self.device)
            frequency = 1.0 / (_ROTARY_BASE ** (exponent / head_dim))
            index = torch.arange(positions, dtype=torch.float32, device=self.device)
            angle = torch.outer(index, frequency)
            self._rotary = (angle.cos(), angle.sin())
        return self._rotary


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head; x [T, H, D], cos and sin [T, 1, D/2] float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _packed_names(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Adapt fair-esm's names: query, key and value become one matrix; the head is left out."""
    weights = {
        re.sub(r"\.self_attn\.out_proj\.", ".out_proj.", name): tensor
        for name, tensor in state.items()
        if not name.startswith("lm_head.") and not re.search(r"\.self_attn\.[qkv]_proj\.", name)
    }
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = [state[f"layers.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            weights[f"layers.{i}.qkv_proj.{kind}"] = torch.cat(parts)
    return weights
