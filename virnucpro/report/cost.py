"""What a run will cost, before a GPU is taken: GPU hours, wall time, output size and disk space."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virnucpro.plan.report import Packing, PlanReport
from virnucpro.report.rates import Estimate

__all__ = [
    "GPUS",
    "START_SECONDS",
    "Cost",
    "DeviceCost",
    "Workload",
    "cost_lines",
    "device_costs",
    "estimate_cost",
    "wall_seconds",
]

#: Seconds of a job beside its steps: imports, weights, CUDA, Snakemake's part, the files at the end
#: (650M on an H100, benchmarks/RESULTS.md, two GPUs). A job is a shard.
START_SECONDS = 7.0

#: Numbers of GPUs that the wall time is given for.
GPUS = (1, 2, 4, 8)

_OBS_BYTES = 200  # of a record beside its vector: id, description, key and numbers in the .h5ad
_PLAN_BYTES = 32  # of an item in a plan
_FRAME_BYTES = 35  # of a sequence in a shard: ">", its key as hex, line ends


@dataclass(frozen=True)
class Workload:
    """What will be computed with the plans."""

    model: str
    dim: int | None  # None where it is not known yet: a local file that is not converted
    layers: int = 1  # that are kept
    output_dtype: str = "float32"
    residues: bool = False  # whether the representations of all residues are kept too


@dataclass(frozen=True)
class DeviceCost:
    """What a device whose rate with the model is known will take."""

    device: str
    dtype: str
    measured_here: bool  # else the rate is a shipped one
    gpu_hours: float  # with each job's start
    wall_seconds: dict[str, float]  # by number of GPUs


@dataclass(frozen=True)
class Cost:
    """What it takes to compute all plans of a sample; sizes are None without a dimension."""

    model: str
    jobs: int
    output_bytes: int | None  # embeddings.h5ad and residues.h5
    disk_bytes: int | None  # all that lies on the disk at the end, weights and exports apart
    devices: list[DeviceCost]


def estimate_cost(
    workload: Workload,
    records: int,
    reports: Sequence[PlanReport],
    estimates: Sequence[Estimate],
) -> Cost:
    """Estimate what it takes to compute all plans of a sample with a model.

    Args:
        workload: what will be computed.
        records: rows of embeddings.h5ad.
        reports: the plan report of each shard.
        estimates: of `estimate_seconds`.
    """
    output, disk = _sizes(workload, records, [report.packing for report in reports])
    tokens = [report.computed_tokens for report in reports]
    devices = device_costs(workload.model, tokens, estimates)
    return Cost(workload.model, len(reports), output, disk, devices)


def device_costs(
    model: str, job_tokens: Sequence[int], estimates: Sequence[Estimate]
) -> list[DeviceCost]:
    """Estimate the time of jobs on each device whose rate with a model is known.

    Args:
        model: its name.
        job_tokens: tokens that each job computes.
        estimates: of `estimate_seconds`.
    """
    devices = []
    for estimate in estimates:
        if estimate.model != model:
            continue
        rate = estimate.tokens_per_second
        jobs = [START_SECONDS + tokens / rate for tokens in job_tokens]
        devices.append(
            DeviceCost(
                estimate.device,
                estimate.dtype,
                estimate.measured_here,
                gpu_hours=round(sum(jobs) / 3600, 4),
                wall_seconds={str(n): round(wall_seconds(jobs, n), 1) for n in GPUS},
            )
        )
    return devices


def _sizes(
    workload: Workload, records: int, packings: Sequence[Packing]
) -> tuple[int | None, int | None]:
    """Return the bytes of the output, and of all that lies on the disk at the end."""
    if workload.dim is None:
        return None, None
    vector = workload.layers * workload.dim * np.dtype(workload.output_dtype).itemsize
    output = records * (vector + _OBS_BYTES)
    disk = output + sum(
        packing.sequences * (vector + _FRAME_BYTES)
        + packing.sequence_residues
        + packing.items * _PLAN_BYTES
        for packing in packings
    )
    if workload.residues:
        kept = sum(p.sequence_residues - p.truncated_residues for p in packings) * vector
        output += kept
        disk += 2 * kept  # of the shards, and of residues.h5
    return output, disk


def wall_seconds(jobs: Sequence[float], gpus: int) -> float:
    """Return the time until the last job ends, each GPU taking the next job as it becomes free."""
    free = [0.0] * gpus
    for seconds in jobs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def cost_lines(cost: Cost) -> list[str]:
    """Describe a cost in sentences, one per line."""
    lines = []
    if cost.output_bytes is not None and cost.disk_bytes is not None:
        lines.append(
            f"output: {_bytes(cost.output_bytes)}; on the disk at the end, weights and exports "
            f"apart: {_bytes(cost.disk_bytes)}"
        )
    for device in cost.devices:
        whose = "measured here" if device.measured_here else "shipped rate"
        walls = ", ".join(
            f"{gpus} GPU{'s' if gpus != '1' else ''} {_duration(seconds)}"
            for gpus, seconds in device.wall_seconds.items()
        )
        lines.append(
            f"{cost.model} on {device.device}, {device.dtype} ({whose}): "
            f"{_hours(device.gpu_hours)} GPU hours in {_jobs(cost.jobs)}; wall time: {walls}"
        )
    if not cost.devices:
        lines.append(f"no rate of {cost.model} is known yet: `token_budget` measures it")
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
    """Return a time as 3 h 05 min, 12 min or 40 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
