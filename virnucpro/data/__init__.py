"""Packing sequences of different lengths into full batches, and feeding them to a model.

The names load on first use, so that planning, which needs `virnucpro.data.first_fit` only, does not
wait seconds for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.data.collators import VarlenCollator
    from virnucpro.data.dataloader_utils import create_async_dataloader
    from virnucpro.data.dataset import SequenceDataset
    from virnucpro.data.packing import GreedyPacker, calculate_token_budget

__all__ = [
    "GreedyPacker",
    "SequenceDataset",
    "VarlenCollator",
    "calculate_token_budget",
    "create_async_dataloader",
]

_MODULES = {
    "GreedyPacker": "packing",
    "SequenceDataset": "dataset",
    "VarlenCollator": "collators",
    "calculate_token_budget": "packing",
    "create_async_dataloader": "dataloader_utils",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
