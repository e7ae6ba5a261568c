"""`virnucpro withdraw`."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.options import FILE, step

__all__ = ["withdraw"]


@click.command()
@click.argument("earlier", nargs=-1, type=click.Path(path_type=Path))
@click.option("--request", required=True, type=FILE, help="Request to write (JSON).")
@click.option("--embeddings", default="", help="What embeddings.h5ad is going to say of itself.")
@step("withdraw", "request", "withdrawn")
def withdraw(earlier: tuple[Path, ...], request: Path, embeddings: str) -> dict[str, object]:
    """Take EARLIER results away, and leave a request for new ones.

    Once the request is there, no result is that was made for another one.
    """
    from virnucpro.merge.requests import withdraw as withdraw_results

    withdrawn = withdraw_results(list(earlier), request, embeddings)
    return {"request": str(request), "withdrawn": [str(path) for path in withdrawn]}
