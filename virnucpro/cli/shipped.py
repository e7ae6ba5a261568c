"""What is shipped beside the package: the workflow, a configuration with every key, the example."""

from __future__ import annotations

from pathlib import Path

from virnucpro.errors import VirnucproError

__all__ = ["EXAMPLE", "SCHEMA", "SNAKEFILE", "shipped"]

SNAKEFILE = "workflow/Snakefile"
SCHEMA = "workflow/schemas/config.schema.yaml"
EXAMPLE = "example/phage_lambda.faa"

_PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return the path of a shipped file or folder, absolute.

    A wheel carries them inside the package; a checkout, which an editable install points to, has
    them beside it.

    Args:
        name: its path from the root of the repository.

    Raises:
        VirnucproError: the package was installed without it.
    """
    for root in (_PACKAGE / "shipped", _PACKAGE.parent):
        if (root / SNAKEFILE).is_file() and (root / name).exists():
            return root / name
    raise VirnucproError(
        f"{name} is missing beside the package in {_PACKAGE}",
        hint="install virnucpro again, from its wheel or its checkout",
    )
