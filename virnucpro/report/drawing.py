"""What all figures share: size, style, colours, and SVG whose bytes depend on the numbers only.

Colours are from the palette of Okabe and Ito (2008), which colour-blind readers can tell apart and
which differ in lightness, so they also print in grey.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from virnucpro.files import atomic_path

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "SKY",
    "WHOLE_NUMBERS",
    "YELLOW",
    "new_figure",
]

BLUE, ORANGE, GREEN, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#000000"
PURPLE, YELLOW, GREY = "#CC79A7", "#E69F00", "#999999"
WHOLE_NUMBERS = FuncFormatter(lambda value, _position: f"{value:,.0f}")

_WIDTH = 6.5  # inches: the text of a page
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "virnucpro",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "path.simplify": False,
}


@contextmanager
def new_figure(path: Path, height: float) -> Iterator[Figure]:
    """Yield an empty figure, 6.5 inches wide, and save it as SVG if the block succeeds.

    Rasterised parts have 200 dots an inch.

    Args:
        path: the SVG to write.
        height: in inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), dpi=200, layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
