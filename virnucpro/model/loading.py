"""From converted weights to a model on a device, in the time that reading them takes.

fair-esm's names are known here and in the files, and nowhere in the network.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.files import sha256_in_background
from virnucpro.model.backends import select_backend
from virnucpro.model.config import ROTARY_FREQUENCIES, ModelConfig
from virnucpro.model.esm2 import PackedESM2
from virnucpro.model.float8 import Float8Block, Float8ESM2
from virnucpro.model.rotary import RotaryTables, interleaved, inverse_frequencies
from virnucpro.model.weights import load_weights, verify_model

__all__ = ["build_model", "load_model"]

logger = logging.getLogger(__name__)


def load_model(
    weights: Path,
    receipt: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    head: bool = False,
    sha256: Future[str] | None = None,
) -> PackedESM2:
    """Load converted weights onto a device, and check them against their receipt meanwhile.

    Args:
        weights: the safetensors file of `virnucpro.model.weights.fetch_model`.
        receipt: its receipt.
        dtype: what the model computes in.
        device: where it runs.
        head: load the language-model head too.
        sha256: the hash of the weights, begun earlier; begun here where it is left out.

    Returns:
        The model, in evaluation mode.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
        InputError: a file has another format number, or the weights have no head.
    """
    start = time.perf_counter()
    sha256 = sha256 or sha256_in_background(weights)
    config, state = load_weights(weights, None)
    model = build_model(config, state, dtype=dtype, device=device, head=head)
    loaded = time.perf_counter() - start
    verify_model(weights, receipt, sha256.result())
    logger.info(
        "model: %s, %s attention (%s), loaded in %.1f s, checked in %.1f s",
        *(model.config.name, model.backend.name, model.backend.reason),
        *(loaded, time.perf_counter() - start),
    )
    return model


def build_model(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "auto",
    head: bool = False,
) -> PackedESM2:
    """Make a model in evaluation mode from canonical weights.

    Args:
        config: the network's shape.
        state: fair-esm's names and shapes (see `virnucpro.model.weights`).
        dtype: what the model computes in; float8_e4m3fn makes a `Float8ESM2`.
        device: where it runs.
        attention: the backend, see `virnucpro.model.backends.select_backend`.
        head: take the language-model head too.

    Raises:
        RuntimeError: a tensor is missing, too many or of another shape.
        InputError: the backend cannot run there, or the weights have no head.
    """
    if head and "lm_head.bias" not in state:
        raise InputError(
            f"the weights of {config.name} have no language-model head, which the "
            "pseudo-perplexity needs",
            hint="fair-esm's files have it; or leave the pseudo-perplexity out",
        )
    device, float8 = torch.device(device), dtype == torch.float8_e4m3fn
    wide = torch.bfloat16 if float8 else dtype  # of what is not in float8
    backend = select_backend(attention, device, wide, config)
    inv_freq = state.get(ROTARY_FREQUENCIES, inverse_frequencies(config.head_dim))
    rotary = RotaryTables(inv_freq.to(device=device, dtype=torch.float32))
    with torch.device("meta"):
        model = (
            Float8ESM2(config, backend, rotary, block=Float8Block, head=head)
            if float8
            else PackedESM2(config, backend, rotary, head=head)
        )

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device).to(wide)  # the device converts faster than the host

    heads = config.heads if backend.attention.interleaved_rotary else None
    ours = _our_tensors(state, config.layers, move, interleave_heads=heads, head=head)
    model.load_state_dict(ours, strict=True, assign=True)
    model.eval().requires_grad_(False)
    model.defer_biases()
    for block in model.blocks:
        if isinstance(block, Float8Block):
            block.scale_weights()
    return model


# fair-esm's names to the network's; the parts of a layer are looked for behind its number.
_OUR_NAMES = (
    ("layers.", "blocks."),
    ("self_attn_layer_norm.", "attention_norm."),
    ("final_layer_norm.", "feed_forward_norm."),
    ("self_attn.out_proj.", "out_proj."),
    ("emb_layer_norm_after.", "final_norm."),
)


def _our_tensors(
    state: Mapping[str, Tensor],
    layers: int,
    move: Callable[[Tensor], Tensor],
    *,
    interleave_heads: int | None,
    head: bool,
) -> dict[str, Tensor]:
    """Return tensors by the network's names; query, key and value become one matrix."""
    elsewhere = re.compile(
        r"rotary\.|.*\.self_attn\.[qkv]_proj\." + ("" if head else r"|lm_head\.")
    )
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not elsewhere.match(name):
            for theirs, replacement in _OUR_NAMES:
                name = name.replace(theirs, replacement)
            ours[name] = move(tensor)
    for i in range(layers):
        for kind in ("weight", "bias"):
            q, k, v = (move(state[f"layers.{i}.self_attn.{p}_proj.{kind}"]) for p in "qkv")
            if interleave_heads is not None:
                q, k = interleaved(q, interleave_heads), interleaved(k, interleave_heads)
            ours[f"blocks.{i}.qkv_proj.{kind}"] = torch.cat((q, k, v))
    return ours
