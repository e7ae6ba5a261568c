"""`virnucpro withdraw`."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FILE, step

__all__ = ["withdraw"]


@click.command()
@click.argument("earlier", nargs=-1, type=click.Path(path_type=Path))
@click.option("--request", required=True, type=FILE, help="Request to write (JSON).")
@click.option("--embeddings", default="", help="Id that embeddings.h5ad will carry.")
@step("withdraw", "request", "withdrawn")
def withdraw(earlier: tuple[Path, ...], request: Path, embeddings: str) -> dict[str, object]:
    """Remove EARLIER results, and then write a request for new ones.

    Once the request is there, no result of another request is left.
    """
    from virnucpro.merge.requests import withdraw as withdraw_results

    withdrawn = withdraw_results(list(earlier), request, embeddings)
    return {"request": str(request), "withdrawn": [str(path) for path in withdrawn]}
