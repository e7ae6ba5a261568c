"""FASTA files to shards of distinct sequences, in memory that does not grow with the input.

The steps: read each record, accept or quarantine it, and spool it (`intake`); find ids that occur
twice (`identifiers`); choose the number of shards from the tokens that were seen; write shards,
records and quarantine from the spools (`outputs`); count what was written; put it in place as one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from virnucpro.errors import DataError, InputError
from virnucpro.files import atomic_path, scratch_directory, sha256_of
from virnucpro.progress import Progress
from virnucpro.sequences.alphabet import SPECIAL_TOKENS
from virnucpro.sequences.compression import STANDARD_INPUT, name_of
from virnucpro.sequences.fasta import read_fasta
from virnucpro.sequences.identifiers import (
    Renames,
    refuse_duplicates,
    refuse_ids,
    refuse_scattered,
    rename_duplicates,
)
from virnucpro.sequences.intake import Reader, RecordIntake
from virnucpro.sequences.manifest import (
    InputFile,
    Manifest,
    RecordCounts,
    SplitParameters,
    write_manifest,
)
from virnucpro.sequences.outputs import (
    ShardTotals,
    choose_shards,
    count_rows,
    write_records,
    write_shards,
)
from virnucpro.sequences.spool import PartitionSpool, RecordSpool
from virnucpro.sequences.staging import check_replaceable, staged_directory
from virnucpro.sequences.summary import listed, log_summary

__all__ = ["split"]

logger = logging.getLogger(__name__)

_DEFAULTS = SplitParameters()


def split(
    fastas: Sequence[Path],
    *,
    sample: str,
    shards_dir: Path,
    records: Path,
    parameters: SplitParameters = _DEFAULTS,
    sha256: Sequence[str] = (),
    reader: Reader = read_fasta,
) -> Manifest:
    """Read a sample's FASTA files and write its shards, records and quarantine.

    Every record of the input is one row of `records` or of ``quarantine.tsv``. A sequence's shard
    is its key modulo the number of shards. Nothing is put in place before all of it is complete;
    the same input gives the same bytes, and the shards do not depend on its order.

    Args:
        fastas: files that are concatenated, plain or compressed; "-" is standard input.
        sample: name of the sample.
        shards_dir: is made or replaced; gets ``{name}.fasta`` of each shard (see `write_shards`),
            ``manifest.json`` and ``quarantine.tsv``.
        records: Parquet file of the accepted records, in input order.
        parameters: which records are kept, and how they are divided.
        sha256: what each file's bytes have to be, in order; nothing for whatever they are.
        reader: reads the records of a file; with `input_type` "genes" they carry genes.

    Returns:
        The manifest.

    Raises:
        InputError: a parameter or an input cannot be used, or no record is accepted.
        DataError: a file changed while it was read, or is not what `sha256` says; or the files that
            were written do not account for every record.
    """
    parameters.check()
    _check_paths(fastas, shards_dir, records)
    with (
        atomic_path(records) as new_records,
        staged_directory(shards_dir) as staging,
        scratch_directory(shards_dir) as spool,
    ):
        before = [_state(path) for path in fastas]
        intake, inputs = _read_all(fastas, sample, parameters, spool, reader)
        _check_unchanged(fastas, before, inputs, sha256)
        files = [file.path for file in inputs]
        for export in parameters.exports:
            refuse_ids(intake.records, files, export)
        renames = _resolve_ids(intake.records, files, parameters.duplicate_ids)
        number = choose_shards(intake.partitions.tokens, parameters.shard_tokens)
        quarantine = staging / "quarantine.tsv"
        write_records(
            intake.records,
            renames=renames,
            shards=number,
            sample=sample,
            files=files,
            records=new_records,
            quarantine=quarantine,
        )
        totals = write_shards(intake.partitions, number, staging, sample)
        manifest = Manifest(
            sample=sample,
            parameters=asdict(parameters),
            inputs=inputs,
            records=_count(intake, totals, renames, new_records, quarantine),
            quarantined=dict(sorted(intake.reasons.items())),
            changes=dict(intake.changes),
            left_out={name: count for name, count in sorted(intake.left_out.items()) if count},
            sequences=totals.sequences,
            residues=totals.residues,
            tokens=totals.residues + SPECIAL_TOKENS * totals.sequences,
            lengths=totals.length_summary(),
            shards=totals.shards,
            records_sha256=sha256_of(new_records),
            quarantine_sha256=sha256_of(quarantine),
        )
        write_manifest(staging, manifest)
    log_summary(manifest, parameters.shard_tokens, intake.first)
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
    inputs: Sequence[InputFile],
    sha256: Sequence[str],
) -> None:
    """Refuse what was read of a file that is being written: it is of no file that stays."""
    for index, (path, file) in enumerate(zip(fastas, inputs, strict=True)):
        expected = sha256[index] if index < len(sha256) else file.sha256
        if _state(path) != before[index] or file.sha256 != expected:
            raise DataError(
                "changed while it was read, or since the workflow was",
                path=path,
                hint="run the same command again, once nothing writes to the file any more",
            )


def _read_all(
    fastas: Sequence[Path],
    sample: str,
    parameters: SplitParameters,
    spool: Path,
    reader: Reader,
) -> tuple[RecordIntake, list[InputFile]]:
    """Read all inputs into spools; return their entries in the manifest too."""
    records = RecordSpool(spool / "records.arrow", genes=parameters.input_type == "genes")
    progress = Progress(_bytes_of(fastas), "bytes", what=f"{sample}: reading")
    intake = RecordIntake(parameters, PartitionSpool(spool), records, progress.step, reader)
    inputs = []
    try:
        for index, path in enumerate(fastas):
            inputs.append(intake.read(index, path))
            if not inputs[-1].records:
                logger.warning("%s: holds no record", inputs[-1].path)
    finally:
        progress.close()
        intake.records.close()
    if len(intake.records) == intake.reasons.total():
        _refuse_empty(fastas, intake, parameters.empty_samples)
    return intake, inputs


def _refuse_empty(fastas: Sequence[Path], intake: RecordIntake, empty_samples: str) -> None:
    """Refuse a sample without an accepted record, or warn of it."""
    names = ", ".join(name_of(path) for path in fastas)
    keep = "; empty_samples: keep (--empty-samples keep) gives an empty result"
    if not len(intake.records):
        error = InputError(
            f"no record in {names}", hint=f"a FASTA record begins with a '>' line{keep}"
        )
    else:
        error = InputError(
            f"none of {len(intake.records)} records can be used ({listed(intake.reasons)})",
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
        if records.has_genes:
            refuse_scattered(records, files)
        return Renames.none()
    renames = rename_duplicates(records, files)
    if renames:
        logger.warning("%d records were renamed, because their ids were taken", len(renames))
    return renames


def _count(
    intake: RecordIntake, totals: ShardTotals, renames: Renames, records: Path, quarantine: Path
) -> RecordCounts:
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
    return RecordCounts(
        read=read,
        accepted=accepted,
        quarantined=quarantined,
        normalised=intake.normalised,
        duplicates=accepted - totals.sequences,
        renamed=len(renames),
    )
