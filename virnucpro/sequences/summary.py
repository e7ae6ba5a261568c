"""What a split says at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from virnucpro.sequences.manifest import Manifest

__all__ = ["listed", "log_summary"]

logger = logging.getLogger(__name__)

# Snakemake takes seconds for hundreds of jobs, and minutes for tens of thousands.
_MANY_SHARDS = 4096
# Reasons that are warned of singly: the file holds what it should not.
_ALARMING = ("text", "nucleotides", "id_as_sequence")


def log_summary(manifest: Manifest, shard_tokens: int, first: Mapping[str, str]) -> None:
    """Log what a split did, and warn of what its user should look at.

    Args:
        manifest: of the split.
        shard_tokens: that no shard should exceed.
        first: place and detail of the first record of each reason for quarantine.
    """
    _log_shards(manifest, shard_tokens)
    if manifest.records.normalised:
        changes = listed(manifest.changes)
        logger.info("%d records normalised (letters: %s)", manifest.records.normalised, changes)
    if manifest.left_out:
        logger.warning("left out, as no residues: %s", listed(manifest.left_out))
    for reason in _ALARMING:
        if reason in first:
            count = manifest.quarantined[reason]
            logger.warning("%d records quarantined as %s; %s", count, reason, first[reason])
    if manifest.quarantined:
        reasons = listed(manifest.quarantined)
        logger.warning("%d records quarantined (%s)", manifest.records.quarantined, reasons)


def _log_shards(manifest: Manifest, limit: int) -> None:
    shards = len(manifest.shards)
    largest = max(shard.tokens for shard in manifest.shards)
    logger.info(
        "%s: %d records, %d distinct sequences, %d duplicates",
        *(manifest.sample, manifest.records.read),
        *(manifest.sequences, manifest.records.duplicates),
    )
    logger.info(
        "%d shard(s), the fewest (a power of two) of at most %d tokens; the largest has %d",
        *(shards, limit, largest),
    )
    if shards > _MANY_SHARDS:
        logger.warning(
            "%d shards: each is a job of its own, with a start-up of its own; raise shard_tokens",
            shards,
        )
    if largest > limit:
        logger.warning("a shard has more than %d tokens: a sequence alone is longer", limit)


def listed(counts: Mapping[str, int]) -> str:
    """List counts by name, without those that are 0."""
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()) if count)
