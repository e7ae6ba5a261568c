"""Numbers of the file formats that the steps write.

A number is raised when the bytes or the meaning of a step's output change, and only then. The
workflow passes the same numbers as rule parameters, so that raising one re-runs just the steps
whose output changes; each command refuses a number that is not its own.
"""

from virnucpro.errors import InputError

__all__ = [
    "BUDGET_FORMAT",
    "EMBED_FORMAT",
    "EXTRA_ARRAYS",
    "MERGE_FORMAT",
    "MODEL_FORMAT",
    "PLAN_FORMAT",
    "REPORT_FORMAT",
    "SPLIT_FORMAT",
    "check_format",
]

MODEL_FORMAT = 1
SPLIT_FORMAT = 1
PLAN_FORMAT = 2
BUDGET_FORMAT = 1
EMBED_FORMAT = 2
MERGE_FORMAT = 2
REPORT_FORMAT = 4

EXTRA_ARRAYS = ("residues", "pseudo_perplexity")
"""Arrays that a shard may have beside its embeddings: ``{shard}.{name}.npy``, in its receipt."""


def check_format(what: str, found: object, expected: int, *, path: object = None) -> None:
    """Refuse a file or a caller that speaks another format number.

    Args:
        what: what carries the number, for the message ("plan", "split manifest", ...).
        found: the number that was found.
        expected: the number that this package writes and reads.
        path: the file, where there is one.

    Raises:
        InputError: the numbers differ.
    """
    if found != expected:
        raise InputError(
            f"{what} has format {found}, this version of virnucpro uses format {expected}",
            path=path,
            hint="remove the file so that it is made again, or use the version that wrote it",
        )
