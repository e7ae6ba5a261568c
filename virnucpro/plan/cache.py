"""A folder of plans shared by runs, in which a shard's plan is found without reading the shard.

A plan is addressed by what decides its bytes. Of the shard that is its hash, which its name
carries, so a hit costs no more than reading and verifying the plan. `embed`, which reads the shard
anyway, checks that the plan is of the shard's sequences.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from virnucpro.errors import DataError, VirnucproError
from virnucpro.files import write_bytes
from virnucpro.plan.parameters import PlanParameters
from virnucpro.plan.plan import parse_plan
from virnucpro.plan.report import PlanReport, read_report, write_report
from virnucpro.sequences.shards import shard_digits

__all__ = ["CacheEntry", "PlannedShard"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedShard:
    """A shard's plan as the bytes of its Parquet file, and its report."""

    content: bytes
    report: PlanReport


class CacheEntry:
    """Where a shard's plan is kept. What is found is verified; the cache never fails a run.

    Args:
        directory: the cache folder, in which `plans` is made when the first plan is kept.
        shard: the shard FASTA.
        parameters: what the plan is made with.

    Attributes:
        address: names the entry, BLAKE2b-128 in hexadecimal.

    Raises:
        DataError: the shard is missing.
    """

    def __init__(self, directory: Path, shard: Path, parameters: PlanParameters) -> None:
        self.parameters = parameters
        self.shard = shard.stem
        try:
            size = shard.stat().st_size  # a shard that was cut short keeps its name
            self.digits = shard_digits(shard)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", path=shard) from error
        # Another version of Arrow may write other bytes of the same plan.
        made_of = [parameters.as_json(), self.digits, size, pa.__version__]
        encoded = json.dumps(made_of, sort_keys=True).encode()
        self.address = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        self.plan_path = directory / "plans" / f"{self.address}.parquet"
        self.report_path = directory / "plans" / f"{self.address}.json"

    def get(self) -> PlannedShard | None:
        """Find the plan; None where there is none that can be used.

        A warning tells of one that is damaged, of another format, or not of this shard and these
        parameters.
        """
        try:
            if not self.report_path.exists():
                return None
            report = read_report(self.report_path)
            content = self.plan_path.read_bytes()
            plan = parse_plan(content, self.plan_path)
            if (report.parameters, report.shard) != (self.parameters, self.digits):
                raise DataError("is of another shard or parameters", path=self.report_path)
            if plan.content_hash != report.packing.content_hash:  # which covers the parameters
                raise DataError("is not the plan of its report", path=self.plan_path)
        except (VirnucproError, OSError) as error:
            logger.warning("cached plan %s is not used and made again: %s", self.address, error)
            return None
        return PlannedShard(content, replace(report, shard=self.shard))

    def put(self, planned: PlannedShard) -> None:
        """Keep a plan; where the folder cannot be written to, a warning says so."""
        try:
            write_bytes(self.plan_path, planned.content)
            write_report(self.report_path, replace(planned.report, shard=self.digits))
        except OSError as error:
            logger.warning("the plan is not kept in the cache, at %s: %s", self.plan_path, error)
