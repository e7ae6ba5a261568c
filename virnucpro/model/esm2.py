"""ESM-2 on packed tokens: fair-esm's network and numbers, without its padding.

The network is that of ``esm.model.esm2.ESM2`` (Lin et al. 2023, doi:10.1126/science.ade2574):
pre-norm layers, rotary positions that restart in every sequence, erf GELU, and a final LayerNorm
on the last representation only. Tokens of all sequences stand end to end in one row, so every
matrix product works on real tokens; only attention needs to know where sequences end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from virnucpro.errors import InputError
from virnucpro.model import kernels
from virnucpro.model.attention import Backend, paired, select_attention
from virnucpro.model.config import ROTARY_FREQUENCIES, ModelConfig
from virnucpro.model.devices import dtype_name
from virnucpro.model.kernels import Kernels

__all__ = ["PackedESM2"]

# ESM-2 was trained with 15% of the residues chosen, 80% of them masked; at inference nothing is
# masked, and the embeddings are scaled by what was visible in training.
_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_VOCABULARY = 33
_PADDING = 1
_ROTARY_BASE = 10000.0


class PackedLayer(nn.Module):
    """The weights of one transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.float8: dict[str, tuple[Tensor, Tensor]] = {}  # of virnucpro.model.float8

    @property
    def norms(self) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """The norm before attention and the one before the feed-forward block."""
        return self.self_attn_layer_norm, self.final_layer_norm


class LanguageModelHead(nn.Module):
    """The weights of the head that predicts residues; its output matrix is the embedding matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.layer_norm = nn.LayerNorm(config.dim)
        self.bias = nn.Parameter(torch.empty(_VOCABULARY))


class PackedESM2(nn.Module):
    """ESM-2 for packed batches.

    Build it with `from_state_dict`; a bare instance has no weights to speak of.

    Attributes:
        config: name, layers, dimension and heads.
        attend: the attention backend in use.
        kernels: the elementwise operations in use.
        lm_head: the language-model head, where it was asked for.
    """

    def __init__(self, config: ModelConfig, *, head: bool = False) -> None:
        super().__init__()
        self.config = config
        # Without weights given it would draw random ones, and on the meta device torch imports its
        # compiler for that: 2 to 4 seconds of every job's start.
        self.embed_tokens = nn.Embedding(
            *(_VOCABULARY, config.dim, _PADDING), _weight=torch.empty(_VOCABULARY, config.dim)
        )
        self.layers = nn.ModuleList(PackedLayer(config) for _ in range(config.layers))
        self.emb_layer_norm_after = nn.LayerNorm(config.dim)
        self.lm_head = LanguageModelHead(config) if head else None
        self.attend: Backend
        self.kernels = Kernels()
        self.frequencies = _frequencies(config.head_dim)
        self.shifts = torch.zeros(2 * config.layers, config.dim)
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
        head: bool = False,
    ) -> Self:
        """Make a model in evaluation mode from canonical weights.

        Args:
            config: the network's shape.
            state: fair-esm's names and shapes (see `virnucpro.model.weights`).
            dtype: what the model computes in.
            device: where it runs.
            attention: ``auto``, ``sdpa``, ``varlen`` or ``tiles``; the last brings the other
                fused kernels with it.
            head: take the language-model head too.

        Raises:
            RuntimeError: a tensor is missing, too many or of another shape.
            InputError: the attention backend cannot run there, or the weights have no head.
        """
        device = torch.device(device)
        if head and "lm_head.bias" not in state:
            raise InputError(
                f"the weights of {config.name} have no language-model head, which the "
                "pseudo-perplexity needs",
                hint="fair-esm's files have it; or leave the pseudo-perplexity out",
            )
        with torch.device("meta"):
            model = cls(config, head=head)

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device).to(dtype)  # the device converts faster than the host

        model.attend, _ = select_attention(attention, device, dtype)
        packed = _packed(state, config, move, pair=model.attend.paired, head=head)
        model.load_state_dict(packed, strict=True, assign=True)
        model.eval().requires_grad_(False)
        frequencies = state.get(ROTARY_FREQUENCIES, _frequencies(config.head_dim))
        model.frequencies = frequencies.to(device=device, dtype=torch.float32)
        model.shifts = model._running_biases()
        if model.attend.name == "tiles":
            model.kernels, _ = kernels.select()
        return model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.embed_tokens.weight.dtype

    @property
    def precision(self) -> str:
        """The name of what the model computes in, as in the configuration and in receipts."""
        return dtype_name(self.dtype)

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
        segments = self.prepare(positions, cu_seqlens, max_seqlen)
        return self.run(tokens.to(self.device, non_blocking=True), segments, layers)

    def prepare(self, positions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Any, ...]:
        """Describe a step's sequences to the attention backend; arguments as in `forward`."""
        rotary = self.rotary_tables(max_seqlen)
        return self.attend.prepare(positions, cu_seqlens, max_seqlen, rotary, self.config.heads)

    def run(
        self, tokens: Tensor, segments: tuple[Any, ...], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Compute on prepared segments; all of it is work of the device, none of the host.

        Args:
            tokens: [T] int64 on the model's device.
            segments: what `prepare` gave.
            layers: as in `forward`.

        Returns:
            As `forward`.
        """
        wanted = {self.resolve_layer(layer) for layer in layers}
        x = self.embed_tokens(tokens) * _TOKEN_DROPOUT_SCALE  # [T, dim]
        representations = {0: x.clone()} if 0 in wanted else {}
        for i, layer in zip(range(1, max(wanted) + 1), self._layers(), strict=False):
            qkv = self._project(layer, x, 2 * i - 2).view(len(x), 3, self.config.heads, -1)
            x.addmm_(self.attend(qkv, segments), layer.out_proj.weight.t())
            self._feed_forward(layer, x, 2 * i - 1)
            if i in wanted:
                last = i == self.config.layers
                shifted = x + self.shifts[2 * i - 1]
                representations[i] = self._normed(x, 2 * i) if last else shifted.to(x.dtype)
        return representations

    def log_likelihood(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Give the natural logarithm of the probability of each token that the model was shown.

        The network of ``esm.modules.RobertaLMHead``; the logits and their softmax over the whole
        vocabulary are in float32. The model must have its head.

        Args:
            hidden: [T, dim], the last representation.
            tokens: [T] int64 on the model's device.

        Returns:
            [T] float32.
        """
        head = cast("LanguageModelHead", self.lm_head)
        x = self.kernels.linear_gelu(hidden, head.dense.weight, head.dense.bias)
        norm = head.layer_norm
        x = self.kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, None)
        logits = torch.addmm(head.bias.float(), x.float(), self.embed_tokens.weight.float().t())
        return logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]

    def _project(self, layer: PackedLayer, x: Tensor, number: int) -> Tensor:
        """Give queries, keys and values of the normed rows, [T, 3 * dim]."""
        return cast("Tensor", layer.qkv_proj(self._normed(x, number)))

    def _feed_forward(self, layer: PackedLayer, x: Tensor, number: int) -> None:
        """Add the feed-forward block of the normed rows to the residual stream, in place."""
        hidden = self.kernels.linear_gelu(
            self._normed(x, number), layer.fc1.weight, layer.fc1.bias
        )  # [T, 4 dim]
        x.addmm_(hidden, layer.fc2.weight.t())  # the bias of fc2 is in the running biases

    def _normed(self, x: Tensor, number: int) -> Tensor:
        """Apply a layer norm, counted from 0 in the order of use, to the residual stream."""
        return cast("Tensor", self.kernels.layer_norm(x, *self._norm(number)))

    def _layers(self) -> Sequence[PackedLayer]:
        """Give the layers with their type."""
        return cast("Sequence[PackedLayer]", self.layers)

    def _running_biases(self) -> Tensor:
        """Sum the biases that the residual stream lacks, [2 * layers, dim] float32.

        The products that end a block add to the residual stream in place, without their biases;
        the stream plus the sum of the biases so far is what fair-esm has there.
        """
        biases = [bias for layer in self._layers() for bias in self._residual_biases(layer)]
        return torch.stack(biases).cumsum(dim=0)

    def _residual_biases(self, layer: PackedLayer) -> tuple[Tensor, Tensor]:
        """Give what a layer's two blocks add to every row of the residual stream, float32."""
        return layer.out_proj.bias.float(), layer.fc2.bias.float()

    def _norm(self, number: int) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """Give weight, bias, epsilon and running biases of a layer norm, in the order of use."""
        layer, which = divmod(number, 2)
        last = layer == self.config.layers
        norms = (self.emb_layer_norm_after,) if last else self._layers()[layer].norms
        norm = norms[which]
        return norm.weight, norm.bias, norm.eps, self.shifts[number - 1] if number else None

    def rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Give cosines and sines, [positions or more, head_dim / 2] float32 each.

        Angles are computed in float32 whatever the model's dtype: in 16 bits, neighbouring
        positions beyond a few hundred would share an angle.
        """
        if self._rotary is None or self._rotary[0].shape[0] < positions:
            index = torch.arange(positions, dtype=torch.float32, device=self.device)
            angle = torch.outer(index, self.frequencies)
            self._rotary = (angle.cos(), angle.sin())
        return self._rotary


def _frequencies(head_dim: int) -> Tensor:
    """Give the rotary frequencies of fair-esm's initialisation, [head_dim / 2] float32.

    The published weights carry their own, which may have been rounded to 16 bits in training.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / (_ROTARY_BASE**exponent)


def _packed(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    move: Callable[[Tensor], Tensor],
    *,
    pair: bool,
    head: bool,
) -> dict[str, Tensor]:
    """Adapt fair-esm's names: query, key and value become one matrix."""
    unused = "" if head else r"lm_head\.|"
    elsewhere = re.compile(unused + r"rotary\.|.*\.self_attn\.[qkv]_proj\.")
    weights = {
        name.replace(".self_attn.out_proj.", ".out_proj."): move(tensor)
        for name, tensor in state.items()
        if not elsewhere.match(name)
    }
    for i in range(config.layers):
        for kind in ("weight", "bias"):
            q, k, v = (move(state[f"layers.{i}.self_attn.{p}_proj.{kind}"]) for p in "qkv")
            if pair:
                q, k = paired(q, config.heads), paired(k, config.heads)
            weights[f"layers.{i}.qkv_proj.{kind}"] = torch.cat((q, k, v))
    return weights
