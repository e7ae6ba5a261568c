"""From a state dict with fair-esm's names, whatever wrote it, to the canonical one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from virnucpro.errors import InputError
from virnucpro.model.config import (
    KNOWN_MODELS,
    ROTARY_FREQUENCIES,
    ModelConfig,
    expected_tensors,
    list_names,
    lm_head_tensors,
    shape_problems,
)

__all__ = ["canonical_state", "make_config", "tensor_problems"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make_config(name: str, layers: object, dim: object, heads: object, path: Path) -> ModelConfig:
    """Make a config from numbers of a source file.

    Raises:
        InputError: they are no shape of a model, or the name belongs to a model of another shape.
    """
    if not (_is_count(layers) and _is_count(dim) and _is_count(heads)):
        raise InputError(f"layers {layers!r}, dimension {dim!r}, heads {heads!r}?", path=path)
    try:
        config = ModelConfig(name, layers, dim, heads)
    except ValueError as error:
        raise InputError(str(error), path=path) from error
    if name == "demo":
        raise InputError(
            "the name 'demo' belongs to the built-in model", path=path, hint="rename the file"
        )
    known = KNOWN_MODELS.get(name, config)
    if known != config:
        raise InputError(
            f"{name} has {known.layers} layers, dimension {known.dim}, {known.heads} heads; this "
            f"file has {layers}, {dim} and {heads}",
            path=path,
            hint="rename it after the model that it holds",
        )
    return config


def canonical_state(
    config: ModelConfig, state: Mapping[str, object], path: Path
) -> dict[str, Tensor]:
    """Check a state dict strictly and bring it into canonical form.

    The contact head is left out: it is trained separately, kept in a file of its own, and not used
    for embeddings. So is the language-model head's output matrix, which is the embedding matrix.

    Args:
        config: the model's shape.
        state: tensors by the names of ``esm.model.esm2.ESM2``. Names that end in ``inv_freq`` are
            copies of the rotary frequencies.
        path: where they come from, for messages.

    Returns:
        The tensors of `expected_tensors`, then the language-model head's if it is there, then the
        rotary frequencies (float32) if they are there. Contiguous, in the source's dtype.

    Raises:
        InputError: a tensor is missing, unexpected, of the wrong shape or dtype, or two tensors
            that are one in the model differ.
    """
    tensors = _strided_tensors(state, path)
    frequencies = [tensors.pop(name) for name in list(tensors) if name.endswith("inv_freq")]
    tied = tensors.pop("lm_head.weight", None)
    if problems := tensor_problems(config, tensors):
        shape = f"{config.layers} layers, dimension {config.dim}"
        raise InputError(f"is not an ESM-2 of {shape}: {'; '.join(problems)}", path=path)
    if tied is not None and not torch.equal(tied, tensors["embed_tokens.weight"]):
        raise InputError("lm_head.weight is not embed_tokens.weight: not an ESM-2 model", path=path)
    if frequencies:
        tensors[ROTARY_FREQUENCIES] = _one_frequency_table(config, frequencies, path)
    order = [*expected_tensors(config), *lm_head_tensors(config), ROTARY_FREQUENCIES]
    return {name: tensors[name].contiguous() for name in order if name in tensors}


def tensor_problems(config: ModelConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors with those of a model: names, shapes, and one dtype for all.

    The rotary frequencies are always float32, whatever the dtype of the others.

    Args:
        config: the model's shape.
        tensors: a state dict that should be canonical.

    Returns:
        One sentence a kind of problem; empty if the tensors are right.
    """
    problems = shape_problems(config, {name: tuple(t.shape) for name, t in tensors.items()})
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name != ROTARY_FREQUENCIES}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        problems.append(f"dtypes are {found}; all must be one of float32, float16, bfloat16")
    if tensors.get(ROTARY_FREQUENCIES, torch.empty(0)).dtype != torch.float32:
        problems.append(f"{ROTARY_FREQUENCIES} is not float32")
    return problems


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _strided_tensors(state: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    """Leave the contact head out and refuse what is not a dense tensor."""
    tensors: dict[str, Tensor] = {}
    other = []
    for name, value in state.items():
        if str(name).startswith("contact_head."):
            continue
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
            tensors[str(name)] = value.detach()
        else:
            other.append(str(name))
    if other:
        raise InputError(f"not dense tensors: {list_names(other)}", path=path)
    return tensors


def _one_frequency_table(config: ModelConfig, tables: list[Tensor], path: Path) -> Tensor:
    """Reduce the layers' copies of the rotary frequencies to one; all layers use the same."""
    expected = (config.head_dim // 2,)
    if any(tuple(table.shape) != expected for table in tables):
        raise InputError(f"rotary frequencies (inv_freq) are not of shape {expected}", path=path)
    if any(not torch.equal(table, tables[0]) for table in tables):
        raise InputError("rotary frequencies (inv_freq) differ between layers", path=path)
    return tables[0].to(torch.float32)
