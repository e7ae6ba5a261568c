"""What stores have of a sample already, and what is left to compute, before a GPU is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.formats import ENGINE_VERSION
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import Plan, pack_missing, read_plan
from virnucpro.report.cost import DeviceCost, device_costs
from virnucpro.report.rates import Estimate
from virnucpro.store.request import Request
from virnucpro.store.store import Known as KnownRows
from virnucpro.store.store import Store

__all__ = ["Known", "StoreLookup", "find_known", "known_lines"]


@dataclass(frozen=True)
class StoreLookup:
    """Where to look, and what a run will ask for, as far as that can be told without a device."""

    store: Store
    model: str
    layers: Sequence[int]  # negative ones count from the end
    last_layer: int | None  # of the model; None where that is not known
    pooling: str
    pseudo_perplexity: str
    compute_dtype: str | None  # None where the device decides
    output_dtype: str

    def requests(self, parameters: PlanParameters) -> list[Request]:
        """Return the requests of the stores that a run with these plans may have.

        Where all residues are to be kept, none does: they have to be computed.
        """
        if self.pooling == "none":
            return []
        facts: dict[str, Any] = {
            "model": self.model,
            "pooling": self.pooling,
            "pseudo_perplexity": self.pseudo_perplexity,
            "output_dtype": self.output_dtype,
            "max_sequence_length": parameters.max_sequence_length,
            "long_sequences": parameters.long_sequences,
            "window_overlap": parameters.window_overlap,
            "engine": ENGINE_VERSION,
        }
        if self.compute_dtype is not None:
            facts["compute_dtype"] = self.compute_dtype
        layers = list(self.layers)
        if self.last_layer is not None:
            layers = [layer + self.last_layer + 1 if layer < 0 else layer for layer in layers]
        if min(layers) >= 0:
            facts["layers"] = layers
        return [request for request in self.store.requests() if request.matches(facts)]


@dataclass(frozen=True)
class Known:
    """What stores have of a sample by one request, which another device or T would not take."""

    request: str  # its id
    device: str
    compute_dtype: str
    tokens_per_step: int
    torch: str
    sequences: int  # that are known
    of: int  # sequences of the sample
    bytes: int  # of the known rows
    tokens_left: int  # real tokens, BOS and EOS included
    computed_tokens_left: int  # of batches, filled up to the token budget
    jobs_left: int  # shards of which something is left; the others take no GPU
    devices: list[DeviceCost]  # what is left


def find_known(
    lookup: StoreLookup, plans: Sequence[Path], estimates: Sequence[Estimate]
) -> list[Known]:
    """Look up all sequences of a sample.

    Args:
        lookup: where, and what for.
        plans: ``{shard}.parquet`` of every shard, at least one.
        estimates: of `estimate_seconds`.

    Returns:
        One for each request that a run may have, that which knows most first.

    Raises:
        DataError: a plan is missing or damaged.
        InputError: a plan has another format number.
    """
    counts: dict[str, _Counts] = {}
    requests = lookup.requests(read_plan(plans[0]).parameters)
    for path in plans if requests else ():
        plan = read_plan(path)
        keys = plan.sequence_keys
        for request in requests:
            known = lookup.store.look_up(request, keys)
            counts.setdefault(request.id, _Counts([], [])).add(plan, known)
    found = [counts[request.id].summary(request, lookup.model, estimates) for request in requests]
    return sorted(found, key=lambda known: (-known.sequences, known.request))


@dataclass(frozen=True)
class _Counts:
    """What was found by one request, an entry a shard."""

    sequences: list[tuple[int, int, int]]  # known, of, bytes of these
    tokens: list[tuple[int, int]]  # left, and of their batches

    def add(self, plan: Plan, known: KnownRows) -> None:
        count = int(np.count_nonzero(known.found))
        width = 0
        if known.segments:
            dtype = np.dtype(known.request.output_dtype)
            width = int(np.prod(known.segments[0].manifest.shape)) * dtype.itemsize
        self.sequences.append((count, plan.sequences, count * width))
        left = int(plan.tokens[~known.found[plan.row]].sum(dtype=np.int64))
        batches = pack_missing(plan, known.found, plan.token_budget)
        self.tokens.append((left, len(batches) * plan.token_budget))

    def summary(self, request: Request, model: str, estimates: Sequence[Estimate]) -> Known:
        sequences, of, size = (sum(column) for column in zip(*self.sequences, strict=True))
        jobs = [computed for _, computed in self.tokens if computed]
        return Known(
            request.id,
            request.device,
            request.compute_dtype,
            request.tokens_per_step,
            request.torch,
            sequences=sequences,
            of=of,
            bytes=size,
            tokens_left=sum(left for left, _ in self.tokens),
            computed_tokens_left=sum(jobs),
            jobs_left=len(jobs),
            devices=device_costs(model, jobs, estimates),
        )


def known_lines(known: Sequence[Known] | None) -> list[str]:
    """Describe what is known in sentences, one per line; none without a store."""
    if known is None:
        return []
    if not known:
        return ["the store has no rows of this model and configuration"]
    return list(map(_line, known))


def _line(known: Known) -> str:
    left = "no job is left"
    if known.jobs_left:
        hours = (f"{one.gpu_hours:.2g} GPU hours on {one.device}" for one in known.devices)
        jobs = "1 job is" if known.jobs_left == 1 else f"{known.jobs_left:,} jobs are"
        left = ", ".join([f"{jobs} left", *hours])
    return (
        f"known by request {known.request[:12]} ({known.device}, {known.compute_dtype}, "
        f"{known.tokens_per_step} tokens a step, torch {known.torch}): {known.sequences:,} of "
        f"{known.of:,} sequences; {left}"
    )
