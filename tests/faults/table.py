"""The table of docs/faults.md: which tests hold which promise.

`python -m tests.faults.table` writes the table's last column anew from the tests' markers; the
promises are written by hand.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "faults.md"
FAULTS = tuple(range(1, 62))
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.*?) \|$", re.MULTILINE)


def markers(nodes: list[ast.expr]) -> Iterator[tuple[str, list[int]]]:
    """Give the name and the numbers of each `pytest.mark` among decorators."""
    for node in nodes:
        call = node if isinstance(node, ast.Call) else None
        name = call.func if call else node
        if isinstance(name, ast.Attribute) and ast.unparse(name.value) == "pytest.mark":
            values = (
                [arg.value for arg in call.args if isinstance(arg, ast.Constant)] if call else []
            )
            yield name.attr, values


def held() -> dict[int, list[str]]:
    """Give for each number its tests, as they stand in the table."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        whole = "pytestmark = pytest.mark.gpu" in path.read_text()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            marks = list(markers(node.decorator_list))
            names = {name for name, _ in marks}
            kind = " (gpu)" if whole or "gpu" in names else " (long)" if "long" in names else ""
            place = path.relative_to(ROOT / "tests").as_posix()
            for number in [n for name, numbers in marks if name == "fault" for n in numbers]:
                found[number].append(f"`{place}` {node.name.removeprefix('test_')}{kind}")
    return {number: sorted(tests) for number, tests in found.items()}


def written() -> dict[int, tuple[str, str]]:
    """Give the table as it stands: number to promise and tests."""
    return {int(row[1]): (row[2], row[3]) for row in ROW.finditer(TABLE.read_text())}


def column(tests: list[str]) -> str:
    """Give the cell of some tests."""
    return "<br>".join(tests)


def rewrite() -> None:
    """Write the last column anew."""
    tests = held()

    def row(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"| {number} | {match[2]} | {column(tests.get(number, []))} |"

    TABLE.write_text(ROW.sub(row, TABLE.read_text()))


if __name__ == "__main__":
    rewrite()
