"""ESM-2 on packed tokens: fair-esm's network and numbers, without its padding.

The network is that of ``esm.model.esm2.ESM2`` (Lin et al. 2023, doi:10.1126/science.ade2574):
pre-norm blocks, rotary positions that restart in every sequence, erf GELU, and a final LayerNorm
on the last representation only. Tokens of all sequences stand end to end in one row, so every
matrix product works on real tokens; only attention needs to know where sequences end.

`virnucpro.model.loading.build_model` makes a model of weights. How attention and the elementwise
operations are computed is the choice of `virnucpro.model.backends`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from virnucpro.errors import InputError
from virnucpro.model.attention import PackedSequences, Segments
from virnucpro.model.backends import Backend
from virnucpro.model.config import VOCABULARY_SIZE, ModelConfig
from virnucpro.model.devices import dtype_name
from virnucpro.model.kernels import Kernels
from virnucpro.model.rotary import RotaryTables

__all__ = ["Block", "Norm", "PackedESM2"]

# ESM-2 was trained with 15% of the residues chosen, 80% of them masked; at inference nothing is
# masked, and the embeddings are scaled by what was visible in training.
_TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
_NORM_EPSILON = 1e-5
_PADDING = 1


class Norm(nn.Module):
    """LayerNorm of the residual stream, which lacks the biases of the blocks before it.

    The products that end a block add to the stream in place, without their biases; here the sum of
    those is added, in float32, as the rows are read.
    """

    def __init__(self, dim: int, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.deferred_bias: Tensor | None = None  # [dim] float32; None where nothing is lacking
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows, [T, dim]."""
        normed: Tensor = self.kernels.layer_norm(x, *self.arguments)
        return normed

    def with_biases(self, x: Tensor) -> Tensor:
        """Return the rows that are normalised here, with all that the stream lacks, [T, dim]."""
        return x if self.deferred_bias is None else (x + self.deferred_bias).to(x.dtype)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """What the kernels take behind the rows: weight, bias, epsilon and deferred bias."""
        return self.weight, self.bias, _NORM_EPSILON, self.deferred_bias


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, both on normed rows."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.backend = config.heads, backend
        self.attention_norm = Norm(dim, backend.kernels)
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.feed_forward_norm = Norm(dim, backend.kernels)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, segments: Segments) -> None:
        """Add the layer to the residual stream x [T, dim] in place, all but `residual_biases`."""
        self.add_attention(x, segments)
        self.add_feed_forward(x)

    def add_attention(self, x: Tensor, segments: Segments) -> None:
        """Add the attention of the normed rows to x [T, dim], in place."""
        qkv = self.queries_keys_values(x).view(len(x), 3, self.heads, -1)
        x.addmm_(self.backend.attention(qkv, segments), self.out_proj.weight.t())

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """Project the normed rows, [T, 3 * dim]."""
        return cast("Tensor", self.qkv_proj(self.attention_norm(x)))

    def add_feed_forward(self, x: Tensor) -> None:
        """Add the feed-forward network of the normed rows to x [T, dim], in place."""
        hidden = self.backend.kernels.linear_gelu(
            self.feed_forward_norm(x), self.fc1.weight, self.fc1.bias
        )  # [T, 4 * dim]
        x.addmm_(hidden, self.fc2.weight.t())

    def residual_biases(self) -> tuple[Tensor, Tensor]:
        """Return what attention and feed-forward lack in every row, [dim] float32 each."""
        return self.out_proj.bias.float(), self.fc2.bias.float()


class LanguageModelHead(nn.Module):
    """The head that predicts residues (``esm.modules.RobertaLMHead``), but for its last matrix.

    That is the embedding matrix.
    """

    def __init__(self, dim: int, kernels: Kernels) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.layer_norm = Norm(dim, kernels)
        self.bias = nn.Parameter(torch.empty(VOCABULARY_SIZE))
        self.kernels = kernels

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the logits of hidden [T, dim], [T, vocabulary] float32."""
        x = self.layer_norm(self.kernels.linear_gelu(hidden, self.dense.weight, self.dense.bias))
        return torch.addmm(self.bias.float(), x.float(), embedding.float().t())


class PackedESM2(nn.Module):
    """ESM-2 for packed batches.

    Args:
        config: name, layers, dimension and heads.
        backend: how attention and the elementwise operations are computed.
        rotary: the tables of rotary positions.
        block: the class of the layers.
        head: whether there is a language-model head.

    Attributes:
        config: as given.
        backend: as given.
        lm_head: the language-model head, or None.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        rotary: RotaryTables,
        *,
        block: type[Block] = Block,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.backend, self.rotary = config, backend, rotary
        # Without weights given it would draw random ones, and on the meta device torch imports its
        # compiler for that: 2 to 4 seconds of every job's start.
        shape = VOCABULARY_SIZE, config.dim
        self.embed_tokens = nn.Embedding(*shape, padding_idx=_PADDING, _weight=torch.empty(shape))
        self.blocks = nn.ModuleList(block(config, backend) for _ in range(config.layers))
        self.final_norm = Norm(config.dim, backend.kernels)
        self.lm_head = LanguageModelHead(config.dim, backend.kernels) if head else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the residual stream is in."""
        return self.embed_tokens.weight.dtype

    @property
    def precision(self) -> str:
        """The name of what the model computes in, as in the configuration and in receipts."""
        return dtype_name(self.dtype)

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

    def prepare(self, positions: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Segments:
        """Describe a step's sequences to the attention backend; arguments as in `forward`."""
        rotary, heads = self.rotary.tables(max_seqlen), self.config.heads
        sequences = PackedSequences(positions, cu_seqlens, max_seqlen, rotary, heads)
        return self.backend.attention.prepare(sequences)

    def run(self, tokens: Tensor, segments: Segments, layers: Sequence[int]) -> dict[int, Tensor]:
        """Compute on prepared segments; all of it is work of the device, none of the host.

        Args:
            tokens: [T] int64 on the model's device.
            segments: what `prepare` returned.
            layers: as in `forward`.

        Returns:
            As `forward`.
        """
        requested = {self.resolve_layer(layer) for layer in layers}
        x = self.embed_tokens(tokens) * _TOKEN_DROPOUT_SCALE  # [T, dim], the residual stream
        representations = {0: x.clone()} if 0 in requested else {}
        for number, block in enumerate(islice(self.blocks, max(requested)), start=1):
            block(x, segments)
            if number in requested:
                representations[number] = self._representation(x, number)
        return representations

    def log_likelihood(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the natural logarithm of the probability of each token that the model was shown.

        The logits and their softmax over the whole vocabulary are in float32. The model must have
        its head.

        Args:
            hidden: [T, dim], the last representation.
            tokens: [T] int64 on the model's device.

        Returns:
            [T] float32.
        """
        logits = cast("LanguageModelHead", self.lm_head)(hidden, self.embed_tokens.weight)
        likelihoods: Tensor = logits.log_softmax(dim=-1)
        return likelihoods.gather(1, tokens[:, None])[:, 0]

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

    def defer_biases(self) -> None:
        """Tell every norm which biases the residual stream lacks there; after weights are set."""
        blocks = cast("Sequence[Block]", self.blocks)
        biases = [bias for block in blocks for bias in block.residual_biases()]
        norms = [
            norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm)
        ]
        sums = torch.stack(biases).cumsum(dim=0)  # [2 * layers, dim]
        for norm, deferred in zip([*norms[1:], self.final_norm], sums, strict=True):
            norm.deferred_bias = deferred

    def _representation(self, x: Tensor, number: int) -> Tensor:
        """Return what fair-esm has behind a layer, [T, dim]."""
        if number == self.config.layers:
            return cast("Tensor", self.final_norm(x))
        return cast("Block", self.blocks[number]).attention_norm.with_biases(x)
