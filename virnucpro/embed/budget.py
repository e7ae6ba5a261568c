"""The token budget of a model on a device, as it stands in its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from virnucpro.files import write_json
from virnucpro.formats import BUDGET_FORMAT, read_as

__all__ = ["Budget", "read_budget", "write_budget"]


@dataclass(frozen=True)
class Budget:
    """What was measured of a model on a device."""

    model: str
    weights_sha256: str  # of the converted weights
    device: str  # its name
    dtype: str  # what the model computes in, such as ``float16``
    backend: str  # of the attention
    tokens_per_step: int  # T, the tokens of every step
    bytes_per_token: float | None  # that a token of a step costs beside the weights; None on a CPU
    tokens_per_second: float  # at T
    # What the steps that were tried gave, see `virnucpro.embed.readout.Readout.facts`.
    readout: dict[str, object]
    rates: dict[str, float]  # tokens a step to tokens a second
    reason: str  # why T is what it is


def write_budget(path: Path, budget: Budget) -> None:
    """Write a budget."""
    write_json(path, {"format": BUDGET_FORMAT, **asdict(budget)}, sealed=True)


def read_budget(path: Path) -> Budget:
    """Read a budget.

    Raises:
        DataError: the file is missing or not a budget.
        InputError: it has another format number.
    """
    return read_as(Budget, path, "token budget", BUDGET_FORMAT)
