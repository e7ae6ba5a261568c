"""What the report on a run says, and how it stands in packing_report.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from virnucpro.embed.receipt import Float32Agreement, ShardReceipt
from virnucpro.formats import REPORT_FORMAT, read_as
from virnucpro.merge.execution import Execution
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.report import PlanReport
from virnucpro.report.step_logs import StepTotals
from virnucpro.report.summaries import PlanTotals
from virnucpro.sequences.manifest import InputFile

__all__ = [
    "Comparison",
    "Duplicates",
    "Ledger",
    "Model",
    "RunReport",
    "SampleSummary",
    "planned_json",
    "read_summary",
]

_RAN_FIELDS = (
    "device",
    "backend",
    "tokens_per_step",
    "steps",
    "retries",
    "recomputed_float32",
)


@dataclass(frozen=True)
class Model:
    """What the embeddings were computed with."""

    model: str
    weights_sha256: str
    layers: list[int]
    pooling: str
    pseudo_perplexity: str
    compute_dtype: str
    output_dtype: str
    agreement: Float32Agreement | None  # of a coarse number format with float32, where measured


@dataclass(frozen=True)
class Ledger:
    """Where the records went; read = embedded + quarantined. The rest counts accepted ones."""

    read: int
    embedded: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    truncated: int
    residues: int
    residues_left_out: int  # of the truncated ones
    in_windows: int
    normalised: int
    letters_replaced: int
    duplicates: int


@dataclass(frozen=True)
class Duplicates:
    """Records that repeat a sequence."""

    records: int
    tokens_saved: int | None  # by computing it once; None where the records are not known


@dataclass(frozen=True)
class Comparison:
    """The time of all steps beside its estimate."""

    seconds: float  # estimated
    measured_over_estimated: float


@dataclass(frozen=True)
class SampleSummary:
    """What the overview of all samples needs of a sample's report."""

    sample: str
    demo: bool
    notice: str | None  # that the numbers carry no biology
    model: Model
    ledger: Ledger
    planned: PlanTotals
    execution: Execution
    measured: StepTotals


@dataclass(frozen=True)
class RunReport(SampleSummary):
    """The report on a finished run of a sample; the lists have one entry per shard."""

    inputs: list[InputFile]
    parameters: PlanParameters
    duplicates: Duplicates
    plans: list[PlanReport]
    receipts: list[ShardReceipt]
    steps: list[StepTotals]  # of each shard
    seconds_per_million_residues: float | None  # of the device
    estimate: Comparison | None  # where the device's rate is known

    @property
    def ran(self) -> list[dict[str, Any]]:
        """On what each shard ran, as rows of tables."""
        return [
            {
                "shard": receipt.shard,
                **{field: getattr(receipt, field) for field in _RAN_FIELDS},
                "quarantined_sequences": len(receipt.quarantined),
            }
            for receipt in self.receipts
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the report as it stands in packing_report.json.

        Times stand under ``measured`` only; all else is the same for the same input and device.
        """
        return {
            "format": REPORT_FORMAT,
            "sample": self.sample,
            "demo": self.demo,
            "notice": self.notice,
            "inputs": [
                {"file": file.name, "sha256": file.sha256, "records": file.records}
                for file in self.inputs
            ],
            "model": asdict(self.model),
            "parameters": asdict(self.parameters),
            "ledger": asdict(self.ledger),
            "duplicates": asdict(self.duplicates),
            "planned": asdict(self.planned),
            "shards": list(map(planned_json, self.plans)),
            "execution": {
                "differing": self.execution.differing,
                **asdict(self.execution),
                "shards": self.ran,
            },
            "measured": {
                "seconds_per_million_residues": self.seconds_per_million_residues,
                **asdict(self.measured),
                "shards": [
                    {"shard": plan.shard, **asdict(steps)}
                    for plan, steps in zip(self.plans, self.steps, strict=True)
                ],
                "estimate": None if self.estimate is None else asdict(self.estimate),
            },
        }


def planned_json(report: PlanReport) -> dict[str, Any]:
    """Return a shard's plan for a report on all shards, without what is the same for all."""
    return {"shard": report.shard, **asdict(report.packing)}


def read_summary(path: Path) -> SampleSummary:
    """Read a sample's packing_report.json.

    Raises:
        DataError: it is missing or damaged.
        InputError: it has another format number.
    """
    return read_as(SampleSummary, path, "report", REPORT_FORMAT)
