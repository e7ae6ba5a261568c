"""What is asked of a model, checked against what its weights can give, before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from virnucpro.embed.readout import Readout
from virnucpro.errors import InputError
from virnucpro.formats import POOLINGS, PSEUDO_PERPLEXITIES
from virnucpro.model.receipt import Receipt

__all__ = ["make_readout"]


def make_readout(
    model: Receipt,
    receipt: Path,
    *,
    layers: Sequence[int],
    pooling: str,
    pseudo_perplexity: str,
    output_dtype: str,
) -> Readout:
    """Resolve what is read out of a model's steps.

    Args:
        model: the receipt of the weights.
        receipt: its file, for messages.
        layers: 1 is the first, -1 the last, 0 the embedded residues.
        pooling: one of `virnucpro.formats.POOLINGS`.
        pseudo_perplexity: one of `virnucpro.formats.PSEUDO_PERPLEXITIES`.
        output_dtype: of the arrays, and so of the residues that are kept.

    Returns:
        The readout, its layers counted from 1.

    Raises:
        InputError: an option is unknown, the model has no such layer or has no head, or a layer is
            asked for twice.
    """
    for what, value, known in (
        ("pooling", pooling, POOLINGS),
        ("pseudo-perplexity", pseudo_perplexity, PSEUDO_PERPLEXITIES),
        ("output dtype", output_dtype, ("float32", "float16")),
    ):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}", hint=f"one of {', '.join(known)}")
    if pseudo_perplexity != "none" and not model.has_lm_head:
        raise InputError(
            f"the weights of {model.name} have no language-model head, which the "
            "pseudo-perplexity needs",
            path=receipt,
            hint="set embed.pseudo_perplexity to none, or use fair-esm's file of the model",
        )
    return Readout(
        _resolve(layers, model.name, model.layers),
        pooling,
        getattr(torch, output_dtype) if pooling == "none" else None,
        pseudo_perplexity != "none",
    )


def _resolve(layers: Sequence[int], model: str, last: int) -> list[int]:
    """Count layers from 1 that may be counted from the end."""
    resolved: list[int] = []
    for layer in layers:
        number = layer + last + 1 if layer < 0 else layer
        if not 0 <= number <= last:
            raise InputError(
                f"layer {layer}: {model} has layers 0 (the embedded residues) to {last}",
                hint="negative numbers count from the end, -1 is the last layer",
            )
        if number in resolved:
            raise InputError(
                f"layer {layer} is asked for twice: it is layer {number} of {model}",
                hint="leave out one of them",
            )
        resolved.append(number)
    return resolved
