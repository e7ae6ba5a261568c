"""Merges the shards of a sample into embeddings.h5ad, and accounts for every record.

The order of the work: check that all shards are there and belong together, place every record,
write both result files under temporary names, count what is in them, and only then give them their
names. A merge that fails leaves an earlier result as it was.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virnucpro.errors import InputError
from virnucpro.files import atomic_path, remove_abandoned
from virnucpro.merge.contig_means import write_means
from virnucpro.merge.contigs import ContigCounts, check_contigs, count_genes, write_contigs
from virnucpro.merge.exports import check_exports, check_poolings, export
from virnucpro.merge.ledger import (
    check_ledger,
    printable_id,
    printable_ids,
    read_quarantine,
    write_quarantine,
)
from virnucpro.merge.provenance import provenance
from virnucpro.merge.records import iter_id_blocks
from virnucpro.merge.requests import check_request, read_request
from virnucpro.merge.residues import write_residues
from virnucpro.merge.rows import quarantined_rows, write_rows
from virnucpro.merge.shards import Shards, check_written_by_split, verify_shards
from virnucpro.sequences.manifest import Manifest, read_manifest

__all__ = ["MergeCounts", "merge_sample"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeCounts:
    """Records of a sample; read = embedded + quarantined."""

    read: int
    embedded: int
    quarantined: int
    truncated: int  # of the embedded ones, as are the next two
    normalised: int
    with_nul: int  # ids and descriptions in which a NUL was replaced


def merge_sample(
    *,
    shards_dir: Path,
    records: Path,
    plans_dir: Path,
    embeddings_dir: Path,
    output: Path,
    quarantine: Path,
    residues: Path | None = None,
    exports: Mapping[str, Path] | None = None,
    request: Path | None = None,
    genes: Sequence[Path] = (),
    contigs: Path | None = None,
    contig_means: Path | None = None,
) -> MergeCounts:
    """Merge the shards of a sample; rows stand in the order of the input's records.

    Memory does not grow with the dimension: about 50 bytes a record and one shard's plan.

    Args:
        shards_dir: manifest.json and the quarantine table of `split`.
        records: records.parquet of `split`.
        plans_dir: ``{shard}.parquet`` of every shard.
        embeddings_dir: ``{shard}.npy`` and ``{shard}.json`` of every shard.
        output: embeddings.h5ad.
        quarantine: the final quarantine table.
        residues: residues.h5, where the shards have the residues.
        exports: kind -> file, see `virnucpro.merge.exports`.
        request: what `virnucpro.merge.requests.withdraw` wrote; the file carries its id, and is not
            put in place where the request was withdrawn meanwhile.
        genes: prefixes of what `virnucpro genes` wrote, of each input of `split`.
        contigs: contigs.tsv, where the genes were found on contigs.
        contig_means: contigs.h5ad, with the mean over each contig's genes.

    Raises:
        DataError: a shard is missing, damaged or of another run; or the ledger does not balance.
        InputError: an export cannot be made, the shards have no residues that were asked for, or
            files have another format number.
    """
    if (contigs or contig_means) and not genes:
        raise InputError("contigs need what `virnucpro genes` wrote", hint="give --genes=PREFIX")
    remove_abandoned(embeddings_dir)  # of the shards that nobody writes any more
    exports, split_quarantine = exports or {}, shards_dir / "quarantine.tsv"
    _check_not_the_same(quarantine, split_quarantine)
    request_id = "" if request is None else read_request(request).embeddings
    check_exports(exports, lambda: itertools.chain.from_iterable(iter_id_blocks(records)))
    manifest = read_manifest(shards_dir)
    if manifest.quarantine_sha256 is not None:
        check_written_by_split(split_quarantine, manifest.quarantine_sha256)
    expected = functools.partial(_expected_ids, records, split_quarantine)
    # First, so that a folder that cannot be written to shows before every shard is hashed.
    with ExitStack() as stack:
        new_output, new_quarantine = (
            stack.enter_context(atomic_path(path)) for path in (output, quarantine)
        )
        new_residues, new_contigs, new_means = (
            stack.enter_context(atomic_path(path)) if path else None
            for path in (residues, contigs, contig_means)
        )
        shards = verify_shards(
            manifest, records=records, plans_dir=plans_dir, embeddings_dir=embeddings_dir
        )
        _check_outputs(shards, residues, exports)
        found = None if not genes else count_genes(genes, manifest, records, shards.index)
        uns = provenance(manifest, shards, found.receipts if found else ())
        counts = write_rows(
            *(new_output, manifest, shards, records),
            residues=new_residues is not None,
            request=request_id,
            uns=uns,
        )
        if new_residues is not None:
            write_residues(new_residues, new_output, shards, sample=manifest.sample)
        rows = quarantined_rows(manifest, shards, records)
        write_quarantine(new_quarantine, itertools.chain(read_quarantine(split_quarantine), rows))
        read = manifest.records.read
        embedded, refused = check_ledger(new_output, new_quarantine, read=read, expected=expected)
        if found is not None:
            _write_contigs(found, new_contigs, new_means, new_output, manifest, uns, request_id)
        if request is not None:
            check_request(request)
    logger.info("%s: %d records = %d embedded + %d quarantined", output, read, embedded, refused)
    for kind, target in exports.items():
        export(kind, output, target)
        logger.info("%s: exported as %s", target, kind)
    return MergeCounts(read, embedded, refused, **vars(counts))


def _write_contigs(
    found: ContigCounts,
    table: Path | None,
    means: Path | None,
    h5ad: Path,
    manifest: Manifest,
    uns: dict[str, Any],
    request: str,
) -> None:
    """Write what was asked for of the contigs; the table is checked against embeddings.h5ad."""
    if table is not None:
        write_contigs(table, found)
        check_contigs(table, h5ad, found, manifest)
    if means is not None:
        write_means(means, h5ad, found, sample=manifest.sample, uns=uns, request=request)


def _expected_ids(records: Path, quarantine: Path) -> Iterator[str]:
    """Yield the ids of the input, as split's files have them."""
    for ids in iter_id_blocks(records):
        yield from printable_ids(ids)
    for row in read_quarantine(quarantine):
        yield printable_id(row.id)


def _check_not_the_same(quarantine: Path, of_split: Path) -> None:
    if quarantine.resolve() == of_split.resolve():
        raise InputError(
            "would overwrite the quarantine table of split",
            path=quarantine,
            hint="write the final table elsewhere",
        )


def _check_outputs(shards: Shards, residues: Path | None, exports: Mapping[str, Path]) -> None:
    """Refuse outputs that these shards cannot give."""
    check_poolings(exports, shards.receipts[0].pooling)
    if residues is not None and shards.residues is None:
        raise InputError(
            "the shards have no residues", path=residues, hint="embed them with --pooling=none"
        )
