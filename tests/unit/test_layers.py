"""Imports go downwards only, which keeps the package's parts separable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import virnucpro

PACKAGE = Path(virnucpro.__file__).parent
# Each part with those that it may import beside itself, in the order of the data: what a part may
# import stands above it here. The modules of one file come first; all parts use them.
SHARED = {
    "errors": set(),
    "temporary": set(),
    "files": {"errors", "temporary"},
    "formats": {"errors", "files"},
    "quarantine": set(),
    "progress": set(),
    "log": {"errors"},
}
LAYERS = {
    "sequences": set(),
    "genes": {"sequences"},
    "plan": {"sequences"},
    "store": {"sequences", "plan"},
    "data": {"sequences", "plan"},
    "model": set(),
    "embed": {"sequences", "plan", "store", "data", "model"},
    "merge": {"sequences", "genes", "plan", "store", "embed"},
    "report": {"sequences", "plan", "store", "embed", "merge"},
    "status": {"sequences", "plan", "embed", "report"},
    "doctor": {"sequences", "model", "embed", "report"},
    "cli": {
        *("sequences", "genes", "plan", "store", "data", "model", "embed", "merge", "report"),
        *("status", "doctor"),
    },
}
ALLOWED = {
    **SHARED,
    **{layer: below | set(SHARED) for layer, below in LAYERS.items()},
    "__main__": {"cli"},
    "__init__": set(),
}
PARTS = {path.stem: [path] for path in PACKAGE.glob("*.py")} | {
    path.parent.name: sorted(path.parent.rglob("*.py")) for path in PACKAGE.glob("*/__init__.py")
}


def imports(source):
    """Yield the line and the full name of everything that is imported, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name in place of dots"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward(part, source):
    """List the imports of a part's module that the order does not allow, a sentence each."""
    reachable = ALLOWED[part] | {part}
    listed = ", ".join(sorted(ALLOWED[part])) or "nothing"
    return [
        f"line {line} imports {name}, but {part} may import {listed} only"
        for line, name in imports(source)
        if name.startswith("virnucpro.") and name.split(".")[1] not in {*reachable, "__version__"}
    ]


@pytest.mark.parametrize("part", PARTS)
def test_part_imports_only_what_stands_below_it(part):
    found = [
        f"{path.relative_to(PACKAGE)}: {problem}"
        for path in PARTS[part]
        for problem in upward(part, path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import virnucpro.cli",
        "from virnucpro import report",
        "def late():\n    from virnucpro.report.pages import summary_page",
    ],
)
def test_upward_import_is_found_however_it_is_written(source):
    (problem,) = upward("merge", source)
    assert "but merge may import embed, errors, files, formats, genes, log, plan" in problem


def test_every_part_is_listed_and_none_imports_in_a_circle():
    assert set(ALLOWED) == set(PARTS)
    above = set()
    for part in (*SHARED, *LAYERS):
        assert LAYERS.get(part, SHARED.get(part)) <= above, f"{part} stands above what it imports"
        above.add(part)


def test_snakemake_is_imported_nowhere():
    for path in PACKAGE.rglob("*.py"):
        names = [name.split(".")[0] for _, name in imports(path.read_text())]
        assert "snakemake" not in names, path


def test_what_comes_after_the_gpu_needs_no_torch():
    """`merge` and `report` read receipts of `embed`, and must not wait for torch with them."""
    code = (
        "import sys, virnucpro.merge.sample, virnucpro.report.run\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
