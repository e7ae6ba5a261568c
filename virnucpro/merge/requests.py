"""Requests: what the results with fixed names were made for.

A request is a file ``{kind}-{id}.json``. It is written after the results of every other request
were taken away, so a result beside it was made for it. See ``workflow/rules/requests.smk``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from virnucpro.errors import DataError
from virnucpro.files import read_json, remove_durably, write_json
from virnucpro.formats import parse

__all__ = ["Request", "check_request", "read_request", "withdraw"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What the results with fixed names are to be made for."""

    embeddings: str  # id that embeddings.h5ad is to carry; empty for results without one


def withdraw(results: Sequence[Path], request: Path, embeddings: str) -> list[Path]:
    """Remove results of other requests, durably, and then write the new request.

    Args:
        results: files and folders, whether they are there or not.
        request: the new request; others of its kind, in its folder, are removed first.
        embeddings: the id that embeddings.h5ad will carry; empty where there is none.

    Returns:
        The results that were there.

    Raises:
        OSError: something cannot be removed, and so may be of another request; or the request
            cannot be written.
    """
    kind = request.name.partition("-")[0]
    remove_durably(path for path in request.parent.glob(f"{kind}-*.json") if path != request)
    withdrawn = remove_durably(results)
    for path in withdrawn:
        logger.info("%s was made for an earlier request: removed", path)
    write_json(request, asdict(Request(embeddings)), sealed=True)
    return withdrawn


def read_request(path: Path) -> Request:
    """Read a request.

    Raises:
        DataError: it is missing or damaged.
    """
    return parse(Request, read_json(path), path)


def check_request(path: Path) -> None:
    """Refuse a request that was withdrawn meanwhile: its results must not be put in place.

    Raises:
        DataError: it is gone: another request has taken its place.
    """
    if not path.exists():
        raise DataError(
            "was withdrawn while its results were made: another input or configuration has taken "
            "its place",
            path=path,
            hint="run the workflow again",
        )
