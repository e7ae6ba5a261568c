"""Logging, set up in one place: the command line calls `configure`, modules only get loggers."""

import logging
import sys

__all__ = ["configure"]


def configure(verbosity: int = 0) -> None:
    """Send the package's log to standard error.

    Args:
        verbosity: -1 for warnings only, 0 for information, 1 for debugging.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    )
    logger = logging.getLogger("virnucpro")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
