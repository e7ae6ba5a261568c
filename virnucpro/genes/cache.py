"""A folder of found genes shared by runs, addressed by what decides them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from virnucpro.errors import DataError, VirnucproError
from virnucpro.files import atomic_path, sha256_of
from virnucpro.formats import GENES_FORMAT
from virnucpro.genes.receipt import (
    SUFFIXES,
    GenesParameters,
    GenesReceipt,
    beside,
    read_receipt,
    write_receipt,
)

__all__ = ["GenesCache"]

logger = logging.getLogger(__name__)


class GenesCache:
    """Where the genes of a file are kept. What is found is verified; the cache never fails a run.

    Args:
        directory: the cache folder, in which `genes` is made when the first genes are kept.
        sha256: of the file's bytes.
        parameters: how genes are found.
        programs: versions of those that find them.

    Attributes:
        address: names the entry, BLAKE2b-128 in hexadecimal.
    """

    def __init__(
        self, directory: Path, sha256: str, parameters: GenesParameters, programs: dict[str, str]
    ) -> None:
        # Other versions of Arrow and zlib may write other bytes of the same genes.
        libraries = [pa.__version__, zlib.ZLIB_RUNTIME_VERSION]
        made_of = [GENES_FORMAT, sha256, asdict(parameters), programs, libraries]
        encoded = json.dumps(made_of, sort_keys=True).encode()
        self.address = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        self._sha256 = sha256
        self._prefix = directory / "genes" / self.address

    def get(self, prefix: Path, path: str) -> GenesReceipt | None:
        """Copy the genes to their place; None where there are none that can be used.

        A warning tells of those that are damaged.

        Args:
            prefix: of the files to write.
            path: of the contigs, as it was given; the receipt has it.
        """
        try:
            if not beside(self._prefix, ".json").exists():
                return None
            kept = read_receipt(self._prefix, verify=())
            if kept.input.sha256 != self._sha256:
                raise DataError("is of another file", path=beside(self._prefix, ".json"))
            receipt = replace(kept, input=replace(kept.input, path=path))
            _copy(self._prefix, prefix, receipt)
        except (VirnucproError, OSError) as error:
            logger.warning("cached genes %s are not used and found again: %s", self.address, error)
            return None
        write_receipt(prefix, receipt)
        return receipt

    def put(self, prefix: Path, receipt: GenesReceipt) -> None:
        """Keep genes; where the folder cannot be written to, a warning says so."""
        try:
            _copy(prefix, self._prefix, receipt)
            write_receipt(self._prefix, replace(receipt, input=replace(receipt.input, path="")))
        except (VirnucproError, OSError) as error:
            logger.warning("genes are not kept in the cache, at %s: %s", self._prefix, error)


def _copy(source: Path, target: Path, receipt: GenesReceipt) -> None:
    """Copy the files of a prefix, and check that each copy has the bytes that the receipt tells."""
    for suffix in SUFFIXES:
        with atomic_path(beside(target, suffix)) as temporary:
            shutil.copyfile(beside(source, suffix), temporary)
            if sha256_of(temporary) != receipt.files[suffix]:
                raise DataError("is damaged", path=beside(source, suffix))
