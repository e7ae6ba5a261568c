"""The same model in float32, for rows that are not finite and for how far another dtype is from it.

It is a fallback, and may not fit beside the model: then it runs on the CPU, and where that has no
memory either, the caller goes on without it. What is finished is never lost for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from virnucpro.model.esm2 import PackedESM2

__all__ = ["ExactModel", "is_out_of_memory"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, on a device or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    # What torch raises where the CPU's memory ends has no class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class ExactModel:
    """Loads the model in float32 when it is first needed, on the device or else on the CPU.

    Args:
        load: gives the model in float32 on a device.
        device: where the model that it stands in for is.
    """

    def __init__(self, load: Callable[[torch.device], PackedESM2], device: torch.device) -> None:
        self._load = load
        self._devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
        self._model: PackedESM2 | None = None

    def run(self, compute: Callable[[PackedESM2], T]) -> T | None:
        """Compute something with the model in float32.

        Args:
            compute: gets the model.

        Returns:
            What `compute` returns; None where no device has the memory.
        """
        while self._devices:
            try:
                if self._model is None:
                    logger.info("loading the model in float32 on %s", self._devices[0])
                    self._model = self._load(self._devices[0])
                return compute(self._model)
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_up(error)
        return None

    def _give_up(self, error: BaseException) -> None:
        """Let go of a device that has no memory for it."""
        self._model = None
        device = self._devices.pop(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        then = f"trying {self._devices[0]}" if self._devices else "going on without it"
        reason = str(error).partition("\n")[0]
        logger.warning("no memory for float32 on %s, %s: %s", device, then, reason)
