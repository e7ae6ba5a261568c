"""What a run will cost, before a GPU is taken: GPU hours, wall time, output size and disk space."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["GPUS", "START_SECONDS", "Wanted", "cost_lines", "estimate_cost", "wall_seconds"]

#: Seconds of a job beside its steps: imports, weights, CUDA, Snakemake's part, the files at the end
#: (650M on an H100, benchmarks/RESULTS.md, two GPUs). A job is a shard.
START_SECONDS = 7.0

#: Numbers of GPUs that the wall time is given for.
GPUS = (1, 2, 4, 8)

_OBS_BYTES = 200  # of a record beside its vector: id, description, key and numbers in the .h5ad
_PLAN_BYTES = 32  # of an item in a plan
_FRAME_BYTES = 35  # of a sequence in a shard: ">", its key as hex, line ends


@dataclass(frozen=True)
class Wanted:
    """What will be computed with the plans.

    Attributes:
        model: the model's name.
        dim: dimension of its vectors; None where it is not known yet (a local file, not converted).
        layers: layers that are kept.
        output_dtype: ``float32`` or ``float16``.
        residues: whether the representations of all residues are kept too.
    """

    model: str
    dim: int | None
    layers: int = 1
    output_dtype: str = "float32"
    residues: bool = False


def estimate_cost(
    wanted: Wanted,
    records: int,
    reports: Sequence[dict[str, Any]],
    estimates: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Estimate what it takes to compute all plans of a sample with a model.

    Args:
        wanted: what will be computed.
        records: rows of embeddings.h5ad.
        reports: the plan report of each shard.
        estimates: of `estimate_seconds`.

    Returns:
        ``output_bytes`` of embeddings.h5ad and residues.h5 and ``disk_bytes`` of all that lies on
        the disk at the end, weights and exports apart (both None where the dimension is not
        known); and ``devices``, an entry for each device whose rate with this model is known:
        ``gpu_hours`` with each job's start, and ``wall_seconds`` by number of GPUs.
    """
    output = disk = None
    if wanted.dim is not None:
        vector = wanted.layers * wanted.dim * np.dtype(wanted.output_dtype).itemsize
        output = records * (vector + _OBS_BYTES)
        disk = output + sum(
            report["sequences"] * (vector + _FRAME_BYTES)
            + report["sequence_residues"]
            + report["items"] * _PLAN_BYTES
            for report in reports
        )
        if wanted.residues:
            kept = sum(r["sequence_residues"] - r["truncated_residues"] for r in reports) * vector
            output += kept
            disk += 2 * kept  # of the shards, and of residues.h5
    tokens = [report["batches"] * report["token_budget"] for report in reports]
    devices = []
    for estimate in estimates:
        if estimate["model"] != wanted.model:
            continue
        jobs = [START_SECONDS + count / estimate["tokens_per_second"] for count in tokens]
        devices.append(
            {
                **{key: estimate[key] for key in ("device", "dtype", "measured_here")},
                "gpu_hours": round(sum(jobs) / 3600, 4),
                "wall_seconds": {str(n): round(wall_seconds(jobs, n), 1) for n in GPUS},
            }
        )
    return {
        "model": wanted.model,
        "jobs": len(tokens),
        "output_bytes": output,
        "disk_bytes": disk,
        "devices": devices,
    }


def wall_seconds(jobs: Sequence[float], gpus: int) -> float:
    """Give the time until the last job ends, each GPU taking the next job as it becomes free."""
    free = [0.0] * gpus
    for seconds in jobs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """Say an estimate in sentences, one a line."""
    lines = []
    if cost["output_bytes"] is not None:
        lines.append(
            f"output: {_bytes(cost['output_bytes'])}; on the disk at the end, weights and exports "
            f"apart: {_bytes(cost['disk_bytes'])}"
        )
    for device in cost["devices"]:
        whose = "measured here" if device["measured_here"] else "shipped rate"
        walls = ", ".join(
            f"{gpus} GPU{'s' if gpus != '1' else ''} {_duration(seconds)}"
            for gpus, seconds in device["wall_seconds"].items()
        )
        lines.append(
            f"{cost['model']} on {device['device']}, {device['dtype']} ({whose}): "
            f"{_hours(device['gpu_hours'])} GPU hours in {_jobs(cost['jobs'])}; wall time: {walls}"
        )
    if not cost["devices"]:
        lines.append(f"no rate of {cost['model']} is known yet: `token_budget` measures it")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number:,} jobs"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    """Give a time as 3 h 05 min, 12 min or 40 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
