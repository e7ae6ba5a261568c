"""The parameters that, with a shard's sequences, decide its plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from virnucpro.errors import InputError
from virnucpro.formats import PLAN_FORMAT
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

__all__ = ["ALGORITHM", "LONG_SEQUENCES", "PlanParameters"]

#: Named in every plan; another name means other batches.
ALGORITHM = "first-fit-decreasing"

#: What can be done with sequences over the maximum length: keep the N-terminal part, or compute all
#: of it in overlapping windows of the maximum length.
LONG_SEQUENCES = ("truncate", "window")

_MOST_TOKENS = (1 << 31) - 1  # of a batch, and so of a sequence: lengths are counted in 32 bits


@dataclass(frozen=True)
class PlanParameters:
    """How a shard is cut into items and packed."""

    token_budget: int  # tokens that a batch holds
    max_sequence_length: int  # residues that an item has at most
    long_sequences: str = "truncate"  # one of `LONG_SEQUENCES`
    window_overlap: int = 0  # residues that neighbouring windows share at least; 0 for "truncate"
    algorithm: str = ALGORITHM

    def __post_init__(self) -> None:
        if self.long_sequences == "truncate":  # where the overlap decides nothing
            object.__setattr__(self, "window_overlap", 0)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())

    def as_json(self) -> dict[str, Any]:
        """Return what stands in a plan's file and goes into its hash."""
        return {"format": PLAN_FORMAT, **asdict(self)}

    def check(self) -> None:
        """Refuse parameters that cannot make a plan.

        Raises:
            InputError: says which, and what would do.
        """
        if self.long_sequences not in LONG_SEQUENCES:
            raise InputError(
                f"long sequences are {self.long_sequences!r}, expected "
                f"{' or '.join(LONG_SEQUENCES)}"
            )
        if self.max_sequence_length < 1:
            raise InputError(
                f"the maximum sequence length is {self.max_sequence_length}, not at least 1"
            )
        if not 0 <= self.window_overlap < self.max_sequence_length:
            raise InputError(
                f"windows of {self.max_sequence_length} residues cannot overlap by "
                f"{self.window_overlap}",
                hint="the overlap is at least 0 and less than the maximum sequence length",
            )
        if self.token_budget > _MOST_TOKENS:
            raise InputError(f"the token budget is {self.token_budget}, not at most {_MOST_TOKENS}")
        longest = self.max_sequence_length + SPECIAL_TOKENS
        if self.token_budget < longest:
            raise InputError(
                f"a token budget of {self.token_budget} cannot hold a sequence of the maximum "
                f"length {self.max_sequence_length}, which costs {longest} tokens",
                hint="raise the token budget, or lower the maximum sequence length",
            )
