"""FASTA files to shards of distinct sequences, in memory that does not grow with the input.

The steps: read and judge each record and spool it (`intake`); find ids that occur twice
(`identifiers`); choose the number of shards from the tokens that were seen; write shards, records
and quarantine from the spools (`outputs`); count what was written; put it in place as one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path, scratch_directory, sha256_of, write_json
from virnucpro.formats import SPLIT_FORMAT
from virnucpro.progress import Progress
from virnucpro.sequences.compression import STANDARD_INPUT, name_of
from virnucpro.sequences.identifiers import (
    Renames,
    refuse_duplicates,
    refuse_ids,
    rename_duplicates,
)
from virnucpro.sequences.intake import Intake, Limits
from virnucpro.sequences.outputs import (
    ShardTotals,
    choose_shards,
    count_rows,
    write_records,
    write_shards,
)
from virnucpro.sequences.spool import PartitionSpool, RecordSpool
from virnucpro.sequences.staging import check_replaceable, staged_directory

__all__ = ["split"]

logger = logging.getLogger(__name__)

# Snakemake takes seconds for hundreds of jobs, and minutes for tens of thousands.
_MANY_SHARDS = 4096
_CHOICES = {
    "input_type": ("protein", "any"),
    "ids": ("first_word", "whole_header"),
    "duplicate_ids": ("error", "suffix"),
    "empty_samples": ("error", "keep"),
}
# Reasons that are warned of singly: the file holds what it should not.
_ALARMING = ("text", "nucleotides", "id_as_sequence")


@dataclass(frozen=True)
class _Parameters:
    """The parameters of a split, as the manifest holds them."""

    shard_tokens: int
    max_invalid_fraction: float
    max_unknown_fraction: float
    max_record_residues: int
    input_type: str
    ids: str
    duplicate_ids: str
    empty_samples: str
    exports: list[str]

    def check(self) -> None:
        if self.shard_tokens < 1:
            raise InputError(f"shard_tokens is {self.shard_tokens}, it must be at least 1")
        for name in ("max_invalid_fraction", "max_unknown_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, not in [0, 1]")
        if not 1 <= self.max_record_residues < 1 << 31:
            raise InputError(
                f"max_record_residues is {self.max_record_residues}, not in [1, {(1 << 31) - 1}]"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join(map(repr, choices))
                raise InputError(f"{name} is {getattr(self, name)!r}, not {listed}")


def split(
    fastas: Sequence[Path],
    *,
    sample: str,
    shards_dir: Path,
    records: Path,
    shard_tokens: int = 100_000_000,
    max_invalid_fraction: float = 0.5,
    max_unknown_fraction: float = 0.9,
    max_record_residues: int = 100_000,
    input_type: str = "protein",
    ids: str = "first_word",
    duplicate_ids: str = "error",
    empty_samples: str = "error",
    exports: Sequence[str] = (),
    sha256: Sequence[str] = (),
) -> dict[str, Any]:
    """Read a sample's FASTA files and write its shards, records and quarantine.

    Every record of the input is one row of `records` or of ``quarantine.tsv``. A sequence's shard
    is its key modulo the number of shards. Nothing is put in place before all of it is complete;
    the same input gives the same bytes, and the shards do not depend on its order.

    Args:
        fastas: files read one after the other, plain or compressed; "-" is standard input.
        sample: name of the sample.
        shards_dir: is made or replaced; gets ``{name}.fasta`` of each shard (see `write_shards`),
            ``manifest.json`` and ``quarantine.tsv``.
        records: Parquet file of the accepted records, in input order.
        shard_tokens: tokens (residues + 2 for each sequence) that no shard exceeds, unless one
            sequence does.
        max_invalid_fraction: a record with more of its letters replaced by X is quarantined.
        max_unknown_fraction: a record with more of its residues unknown (X, B, Z, J and what was
            replaced) is quarantined.
        max_record_residues: a record with more letters is quarantined; no more are held in memory.
        input_type: "protein" refuses what looks like nucleotides, "any" does not.
        ids: "first_word" of the header, up to the first white space, or "whole_header".
        duplicate_ids: "error" refuses an id that occurs twice, "suffix" renames the later records.
        empty_samples: "error" refuses a sample of which no record is accepted, "keep" writes one
            empty shard.
        exports: those of `virnucpro.formats.LIMITED_IDS` refuse ids that they cannot have.
        sha256: what each file's bytes have to be, in order; nothing for whatever they are.

    Returns:
        The manifest.

    Raises:
        InputError: a parameter or an input cannot be used, or no record is accepted.
        DataError: a file changed while it was read, or is not what `sha256` says; or the files that
            were written do not account for every record.
    """
    parameters = _Parameters(
        shard_tokens,
        max_invalid_fraction,
        max_unknown_fraction,
        max_record_residues,
        input_type,
        ids,
        duplicate_ids,
        empty_samples,
        list(exports),
    )
    parameters.check()
    _check_paths(fastas, shards_dir, records)
    with (
        atomic_path(records) as new_records,
        staged_directory(shards_dir) as staging,
        scratch_directory(shards_dir) as spool,
    ):
        before = [_state(path) for path in fastas]
        intake, inputs = _read_all(fastas, sample, parameters, spool)
        _check_unchanged(fastas, before, inputs, sha256)
        files = [entry["path"] for entry in inputs]
        for export in exports:
            refuse_ids(intake.records, files, export)
        renames = _resolve_ids(intake.records, files, duplicate_ids)
        number = choose_shards(intake.partitions.tokens, shard_tokens)
        write_records(
            intake.records,
            renames=renames,
            shards=number,
            sample=sample,
            files=files,
            records=new_records,
            quarantine=staging / "quarantine.tsv",
        )
        totals = write_shards(intake.partitions, number, staging, sample)
        counts = _count(intake, totals, renames, new_records, staging / "quarantine.tsv")
        manifest = _manifest(sample, parameters, inputs, counts, intake, totals)
        manifest["records_sha256"] = sha256_of(new_records)
        manifest["quarantine_sha256"] = sha256_of(staging / "quarantine.tsv")
        write_json(staging / "manifest.json", manifest, sealed=True)
    _log_summary(manifest, intake)
    return manifest


def _check_paths(fastas: Sequence[Path], shards_dir: Path, records: Path) -> None:
    """Find what would fail after hours of reading before reading."""
    if not fastas:
        raise InputError("no FASTA file was given")
    names = [str(path) for path in fastas]
    if names.count(STANDARD_INPUT) > 1:
        raise InputError("standard input was given twice")
    for path in fastas:
        if str(path) != STANDARD_INPUT and not path.exists():
            raise InputError("does not exist", path=path)
    check_replaceable(shards_dir)
    if shards_dir.resolve() in records.resolve().parents:
        raise InputError(
            "lies in the directory of shards, which is replaced as a whole",
            path=records,
            hint="put the records beside the directory",
        )


def _state(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written to; None for what is no file."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None


def _check_unchanged(
    fastas: Sequence[Path],
    before: Sequence[tuple[int, int] | None],
    inputs: Sequence[dict[str, Any]],
    sha256: Sequence[str],
) -> None:
    """Refuse what was read of a file that is being written: it is of no file that stays."""
    for index, (path, entry) in enumerate(zip(fastas, inputs, strict=True)):
        expected = sha256[index] if index < len(sha256) else entry["sha256"]
        if _state(path) != before[index] or entry["sha256"] != expected:
            raise DataError(
                "changed while it was read, or since the workflow was",
                path=path,
                hint="run the same command again, once nothing writes to the file any more",
            )


def _read_all(
    fastas: Sequence[Path], sample: str, parameters: _Parameters, spool: Path
) -> tuple[Intake, list[dict[str, Any]]]:
    """Read all inputs into spools; give also their entries in the manifest."""
    limits = Limits(
        parameters.max_invalid_fraction,
        parameters.max_unknown_fraction,
        parameters.max_record_residues,
        nucleotides=parameters.input_type == "any",
    )
    records = RecordSpool(spool / "records.arrow")
    progress = Progress(_bytes_of(fastas), "bytes", what=f"{sample}: reading")
    intake = Intake(limits, PartitionSpool(spool), records, progress.step)
    inputs = []
    try:
        for index, path in enumerate(fastas):
            entry = intake.read(index, path, whole_header=parameters.ids == "whole_header")
            if not entry["records"]:
                logger.warning("%s: holds no record", entry["path"])
            inputs.append(entry)
    finally:
        progress.close()
        intake.records.close()
    if len(intake.records) == intake.reasons.total():
        _refuse_empty(fastas, intake, parameters.empty_samples)
    return intake, inputs


def _refuse_empty(fastas: Sequence[Path], intake: Intake, empty_samples: str) -> None:
    """Refuse a sample without an accepted record, or warn of it."""
    names = ", ".join(name_of(path) for path in fastas)
    keep = "; empty_samples: keep (--empty-samples keep) gives an empty result"
    if not len(intake.records):
        error = InputError(
            f"no record in {names}", hint=f"a FASTA record begins with a '>' line{keep}"
        )
    else:
        error = InputError(
            f"none of {len(intake.records)} records can be used ({_listed(intake.reasons)})",
            path=names,
            hint=f"the first: {_first_detail(intake.records)}{keep}",
        )
    if empty_samples == "error":
        raise error
    logger.warning("%s: the result will be empty", str(error).partition("\n")[0])


def _bytes_of(fastas: Sequence[Path]) -> int | None:
    """Sum the inputs' sizes; None where one is no file, such as standard input."""
    files = [path for path in fastas if path.is_file()]
    return sum(path.stat().st_size for path in files) if len(files) == len(fastas) else None


def _first_detail(records: RecordSpool) -> str:
    batch = next(records.batches(["id", "line", "detail"]))
    first = batch.slice(0, 1).to_pylist()[0]
    return f"{first['id']!r}, line {first['line']}: {first['detail']}"


def _resolve_ids(records: RecordSpool, files: Sequence[str], duplicate_ids: str) -> Renames:
    if duplicate_ids == "error":
        refuse_duplicates(records, files)
        return Renames.none()
    renames = rename_duplicates(records, files)
    if renames:
        logger.warning("%d records were renamed, because their ids were taken", len(renames))
    return renames


def _count(
    intake: Intake, totals: ShardTotals, renames: Renames, records: Path, quarantine: Path
) -> dict[str, int]:
    """Count the rows of the files that were written, and compare them with what was read.

    Raises:
        DataError: they do not add up.
    """
    read = len(intake.records)
    accepted, quarantined = count_rows(records, quarantine)
    if accepted + quarantined != read or quarantined != intake.reasons.total():
        raise DataError(
            f"ledger: {read} records were read and {intake.reasons.total()} of them quarantined, "
            f"but {accepted} accepted and {quarantined} quarantined ones are in the files"
        )
    return {
        "read": read,
        "accepted": accepted,
        "quarantined": quarantined,
        "normalised": intake.normalised,
        "duplicates": accepted - totals.sequences,
        "renamed": len(renames),
    }


def _manifest(
    sample: str,
    parameters: _Parameters,
    inputs: list[dict[str, Any]],
    counts: dict[str, int],
    intake: Intake,
    totals: ShardTotals,
) -> dict[str, Any]:
    return {
        "format": SPLIT_FORMAT,
        "sample": sample,
        "parameters": asdict(parameters),
        "inputs": inputs,
        "records": counts,
        "quarantined": dict(sorted(intake.reasons.items())),
        "changes": dict(intake.changes),
        "left_out": {name: count for name, count in sorted(intake.left_out.items()) if count},
        "sequences": totals.sequences,
        "residues": totals.residues,
        "tokens": totals.residues + 2 * totals.sequences,
        "lengths": totals.length_summary(),
        "shards": totals.shards,
    }


def _log_summary(manifest: dict[str, Any], intake: Intake) -> None:
    counts = manifest["records"]
    largest = max(shard["tokens"] for shard in manifest["shards"])
    limit = manifest["parameters"]["shard_tokens"]
    logger.info(
        "%s: %d records, %d distinct sequences, %d duplicates",
        manifest["sample"],
        counts["read"],
        manifest["sequences"],
        counts["duplicates"],
    )
    logger.info(
        "%d shard(s), the fewest (a power of two) of at most %d tokens; the largest has %d",
        len(manifest["shards"]),
        limit,
        largest,
    )
    if len(manifest["shards"]) > _MANY_SHARDS:
        logger.warning(
            "%d shards: each is a job of its own, with a start-up of its own; raise shard_tokens",
            len(manifest["shards"]),
        )
    if largest > limit:
        logger.warning("a shard has more than %d tokens: a sequence alone is longer", limit)
    if intake.normalised:
        changed = _listed(intake.changes)
        logger.info("%d records normalised (letters: %s)", intake.normalised, changed)
    if any(intake.left_out.values()):
        logger.warning("left out, as no residues: %s", _listed(intake.left_out))
    for reason in _ALARMING:
        if reason in intake.first:
            count = intake.reasons[reason]
            logger.warning("%d records quarantined as %s; %s", count, reason, intake.first[reason])
    if intake.reasons:
        listed = _listed(intake.reasons)
        logger.warning("%d records quarantined (%s)", counts["quarantined"], listed)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()) if count)
