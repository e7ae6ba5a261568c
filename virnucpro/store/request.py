"""The request: all that the bits of a stored vector depend on beside the sequence's residues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from virnucpro.formats import ENGINE_VERSION

__all__ = ["ACCEPTED", "Request"]

ACCEPTED = ("same", "close")
"""Which rows are taken: those of the same request, or also those of a request that is close."""

_CLOSE_DIFFER_IN = ("tokens_per_step", "device", "threads", "backend")


@dataclass(frozen=True)
class Request:
    """What a vector was computed with; equal requests give equal bits."""

    weights_sha256: str
    layers: list[int]  # from 1; 0 are the embedded residues
    pooling: str  # as configured; of `none`, the mean is stored, whose last bits are its own
    pseudo_perplexity: str  # none, or how it was computed: then each row has it, too
    compute_dtype: str
    output_dtype: str  # float32 or float16, of the vectors
    max_sequence_length: int  # residues that an item has at most; with the next two fields, how
    long_sequences: str  # longer sequences are cut into items
    window_overlap: int
    tokens_per_step: int  # T
    device: str  # the kind, as its maker names it
    threads: int | None  # of sums on a CPU; None on a GPU
    backend: str  # of the attention
    torch: str  # version
    engine: int = ENGINE_VERSION
    model: str = field(default="", compare=False)  # what the weights are called, for people
    demo: bool = field(default=False, compare=False)  # whether the weights are random

    @cached_property
    def id(self) -> str:
        """Name the request: BLAKE2b-128, in hexadecimal, over the fields that bits depend on."""
        compared = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        text = json.dumps(compared, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def is_close_to(self, other: Request) -> bool:
        """Tell whether two requests differ in the device or T alone, and so within rounding."""
        mine, others = asdict(self), asdict(other)
        same = {each.name for each in fields(self) if each.compare} - set(_CLOSE_DIFFER_IN)
        return all(mine[name] == others[name] for name in same)

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether these fields have these values."""
        return all(getattr(self, name) == value for name, value in facts.items())

    @property
    def arrays(self) -> dict[str, str]:
        """The arrays that a segment of this request has, and their number formats."""
        scores = {} if self.pseudo_perplexity == "none" else {"pseudo_perplexity": "float64"}
        return {"embeddings": self.output_dtype, **scores}
