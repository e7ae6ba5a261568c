"""Packing sequences of different lengths into full batches, and feeding them to a model."""

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
