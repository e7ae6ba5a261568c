"""The step log of a shard: what is known of each step, a line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virnucpro.embed.receipt import Quarantined
from virnucpro.formats import STEP_LOG_COLUMNS, step_log_checksum

__all__ = ["StepRecord", "step_log_bytes"]


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step beside its vectors."""

    number: int  # among the shard's steps, from 0
    items: list[int]  # [B] numbers of its items in the shard's plan
    tokens: int  # real ones, BOS and EOS included
    seconds: float  # how long it took
    peak_memory_bytes: int  # so far, see `virnucpro.model.devices.peak_memory_bytes`
    retries: int  # how often the step was repeated at half its tokens
    recomputed: int  # items that were computed again in float32
    quarantined: list[Quarantined]  # the items without an embedding
    # With the first step of a process the GPU that it holds and how long it waited for that.
    device: str
    likelihood: list[float]  # [B] means of logarithms, where they were asked for; else empty

    def line(self) -> str:
        """Return the step's line in the step log; its last cell is a checksum of the others.

        Times differ from run to run, so the receipt, which does not, cannot hold a hash of them.
        """
        notes = [f"GPU {self.device}"] if self.device else []
        notes += [f"split {self.retries}"] if self.retries else []
        notes += [f"float32 {self.recomputed}"] if self.recomputed else []
        seconds, memory = f"{self.seconds:.4f}", self.peak_memory_bytes
        cells = (self.number, len(self.items), self.tokens, seconds, memory, ", ".join(notes))
        line = "\t".join(map(str, cells))
        return f"{line}\t{step_log_checksum(line)}"


def step_log_bytes(steps: Iterable[StepRecord]) -> bytes:
    """Return one line a step, tab-separated, below a header."""
    lines = ["\t".join(STEP_LOG_COLUMNS), *(step.line() for step in steps)]
    return "".join(f"{line}\n" for line in lines).encode()
