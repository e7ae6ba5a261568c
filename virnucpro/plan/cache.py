"""A folder of plans addressed by what they were made of, shared by runs."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.errors import VirnucproError
from virnucpro.plan.plan import Plan, check_plan_fits, read_plan, write_plan

__all__ = ["PlanCache", "plan_address"]

logger = logging.getLogger(__name__)


def plan_address(keys: NDArray[np.uint8], lengths: NDArray[Any], parameters: dict[str, Any]) -> str:
    """Give the address of a plan: BLAKE2b-128 of sequences and parameters, in hexadecimal.

    Args:
        keys: [sequences, 16] keys, sorted, so that the address is that of the set.
        lengths: [sequences] residues.
        parameters: see `virnucpro.plan.plan.plan_parameters`; they hold the format number.
    """
    digest = hashlib.blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(keys).data)
    digest.update(np.asarray(lengths, np.int64).data)
    return digest.hexdigest()


class PlanCache:
    """Plans in `{directory}/plans/`. What is found is verified; the cache never fails a run.

    Args:
        directory: the cache folder; it is made when the first plan is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "plans"

    def path(self, address: str) -> Path:
        """Give the file of an address."""
        return self.directory / f"{address}.parquet"

    def get(
        self, keys: NDArray[np.uint8], lengths: NDArray[Any], parameters: dict[str, Any]
    ) -> Plan | None:
        """Find a plan; None where there is none that can be used.

        A file that is damaged, of another format, of other sequences or of other parameters is
        told in a warning.
        """
        path = self.path(plan_address(keys, lengths, parameters))
        try:
            if not path.exists():
                return None
            plan = read_plan(path)
            check_plan_fits(plan, keys, lengths)
        except (VirnucproError, OSError) as error:
            logger.warning("cached plan %s is not used and made again: %s", path, error)
            return None
        if plan.parameters != parameters:
            logger.warning("cached plan %s is of other parameters and made again", path)
            return None
        return plan

    def put(self, address: str, plan: Plan) -> None:
        """Keep a plan; a folder that cannot be written to is told in a warning."""
        path = self.path(address)
        try:
            write_plan(plan, path)
        except OSError as error:
            logger.warning("the plan is not kept in the cache, at %s: %s", path, error)
