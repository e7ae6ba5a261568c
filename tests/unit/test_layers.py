"""The layers import downwards only; this is what keeps the package's parts separable."""

import ast
from pathlib import Path

import pytest

import virnucpro

PACKAGE = Path(virnucpro.__file__).parent
SHARED = {"errors", "files", "formats", "log", "progress"}
# Each layer with those it may use, beside itself and SHARED.
LAYERS = {
    "sequences": set(),
    "plan": {"sequences"},
    "data": {"sequences", "plan"},
    "model": set(),
    "embed": {"sequences", "plan", "data", "model"},
    "store": {"sequences", "plan"},
    "cli": {"sequences", "plan", "data", "model", "embed", "store"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_what_stands_below_it(layer):
    allowed = LAYERS[layer] | SHARED | {layer}
    for path in sorted((PACKAGE / layer).rglob("*.py")):
        for module in imported(path):
            if not module.startswith("virnucpro."):
                continue
            inner = module.removeprefix("virnucpro.")
            assert any(inner == name or inner.startswith(f"{name}.") for name in allowed), (
                f"{path.relative_to(PACKAGE)} imports {module}"
            )


def test_snakemake_is_imported_nowhere():
    for path in PACKAGE.rglob("*.py"):
        assert not any(module.split(".")[0] == "snakemake" for module in imported(path)), path


def test_every_layer_is_listed():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(LAYERS)
