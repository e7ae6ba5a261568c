"""T, the tokens of every step of a shard: as measured, and no more than the caller allows."""

from __future__ import annotations

import logging
from pathlib import Path

from virnucpro.embed.budget import Budget, read_budget
from virnucpro.embed.measure import measure_budget
from virnucpro.embed.readout import Readout
from virnucpro.errors import InputError
from virnucpro.model.devices import device_name
from virnucpro.model.esm2 import PackedESM2
from virnucpro.plan.plan import Plan
from virnucpro.sequences.alphabet import SPECIAL_TOKENS

__all__ = ["choose_tokens_per_step", "limit_tokens"]

logger = logging.getLogger(__name__)


def choose_tokens_per_step(
    measured: Path,
    model: PackedESM2,
    plan: Plan,
    weights_sha256: str,
    readout: Readout,
    limit: int | None,
) -> int:
    """Choose T for a shard; a multiple of the plan's token budget where it is above that.

    Args:
        measured: the token budget that `virnucpro budget` wrote.
        model: the model on its device; on another one than was measured, it is measured again.
        plan: the shard's plan.
        weights_sha256: of the model's weights.
        readout: what the steps give; for another than was measured, it is measured again.
        limit: no step is larger than this; None for no limit.

    Raises:
        InputError: a step would not hold the plan's longest sequence, or the budget has another
            format number.
        DataError: the budget is missing or not a budget.
    """
    budget = _budget_here(read_budget(measured), model, plan, weights_sha256, readout)
    return limit_tokens(budget, plan, limit, measured)


def limit_tokens(budget: Budget, plan: Plan, limit: int | None, path: Path) -> int:
    """Return T of a budget for a shard; arguments and errors as of `choose_tokens_per_step`."""
    tokens = budget.tokens_per_step
    if limit is not None and limit < tokens:
        logger.info("tokens per step: %d, limited from %d", limit, tokens)
        tokens = limit
    longest = plan.max_sequence_length + SPECIAL_TOKENS
    if tokens < longest:
        raise InputError(
            f"a step of {tokens} tokens cannot hold a sequence of {longest} tokens",
            path=path,
            hint="lower plan.max_sequence_length, or use a device with more memory",
        )
    if tokens > plan.token_budget:
        tokens -= tokens % plan.token_budget
    return tokens


def _budget_here(
    budget: Budget, model: PackedESM2, plan: Plan, weights_sha256: str, readout: Readout
) -> Budget:
    """Use the measured budget where it was measured on such a device, else measure again."""
    here = {
        "weights_sha256": weights_sha256,
        "device": device_name(model.device),
        "dtype": model.precision,
        "backend": model.backend.name,
        "readout": readout.facts(),
    }
    differing = [
        f"{key} {getattr(budget, key)}" for key in here if getattr(budget, key) != here[key]
    ]
    if not differing:
        return budget
    logger.warning("the token budget was measured for %s: measuring again", ", ".join(differing))
    return measure_budget(
        model,
        weights_sha256,
        readout,
        plan_token_budget=plan.token_budget,
        max_seqlen=plan.max_sequence_length + SPECIAL_TOKENS,
    )
