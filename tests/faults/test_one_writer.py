"""`virnucpro.files` is the one module that puts files in place: seen in the source, and at work."""

import ast
import re
import sys
from pathlib import Path

import pytest

import virnucpro
from tests.faults.small import STEPS, Small, stand_ins
from virnucpro.temporary import is_temporary

PACKAGE = Path(virnucpro.__file__).parent
BLOCKS = {"atomic_path", "atomic_directory", "scratch_directory", "staged_directory"}
# Functions that write to a path which their caller has from one of the blocks, or no file at all.
GIVEN_A_PATH = {
    "cli/__init__.py:_open_streams": "standard streams",
    "genes/find.py:_find": "the files of genes, in atomic_path, a stack of them",
    "genes/find.py:__init__": "one of these",
    "doctor/places.py:_can_lock": "a try, of which nothing stays",
    "embed/device_lock.py": "a lock holds no data",
    "embed/output.py:_create": "the arrays of a shard, from embed_shard",
    "log.py": "the log",
    "plan/table.py:plan_bytes": "a buffer in memory",
    "model/download.py": "parts of a download, which the next try takes up",
    "store/writing.py:__init__": "the arrays of a segment, from write_segment",
    "sequences/spool.py": "spools, in split's scratch directory",
    "sequences/outputs.py:write_records": "records and quarantine, from split",
    "merge/exports": "exports, from export",
    "merge/h5ad.py:__init__": "embeddings.h5ad, from merge",
    "merge/residues.py:write_residues": "residues.h5, from merge",
    "merge/tables.py:write_table": "tables, from their callers",
}
WRITERS = re.compile(
    r"""(^|\.)(write_text|to_csv|to_parquet|save_file|savefig|ParquetWriter|write_table
    |new_file|touch|mkdir|makedirs|unlink|rmdir|rmtree|symlink_to|hardlink_to|rename|renames
    |download_url_to_file|mkstemp|mkdtemp|NamedTemporaryFile|TemporaryDirectory|copyfile|copytree
    |copy2)$|^shutil\.move$|^(np|numpy)\.save|^torch\.save$|open_memmap$""",
    re.VERBOSE,
)
OWN = {"write_table"}  # the package's own function of that name


def mode_of(call):
    """Give the mode of an `open`, by whatever name, or of `h5py.File`; "r" where none is given."""
    strings = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    strings += [k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)]
    modes = [s for s in strings if isinstance(s, str) and re.fullmatch(r"[rwax+bt]{1,3}", s)]
    return modes[0] if modes else "r"


def writes(call):
    name = ast.unparse(call.func)
    if name.endswith("open") or name == "h5py.File":
        return any(letter in mode_of(call) for letter in "wax+")
    if name.endswith(".write_bytes"):
        return True
    if name.endswith(".replace") and len(call.args) == 1:
        return True
    return name not in OWN and WRITERS.search(name) is not None


def writing_calls(path):
    """Give the function and the line of each call that writes outside a block of `files`."""

    def walk(node, function, inside):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items]
            names = {ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)}
            inside = inside or bool(names & BLOCKS)
        if isinstance(node, ast.Call) and not inside and writes(node):
            yield function, f"{path.name}:{node.lineno}: {ast.unparse(node)[:60]}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, inside)

    yield from walk(ast.parse(path.read_text()), "", False)


@pytest.mark.fault(4, 5)
def test_nothing_is_written_past_the_one_module():
    strange = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        folder = place.rpartition("/")[0]
        if place == "files.py":
            continue
        for function, where in writing_calls(path):
            if not {folder, place, f"{place}:{function}"} & GIVEN_A_PATH.keys():
                strange.append(where)
    assert strange == []


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "open(path, 'w')",
        "path.open('ab')",
        "np.save(path, array)",
        "h5py.File(path, 'w')",
        "pq.write_table(table, path)",
        "old.rename(new)",
        "old.replace(new)",
        "os.makedirs(path)",
        "torch.save(x, path)",
    ],
)
def test_the_search_finds(line, tmp_path):
    source = tmp_path / "module.py"
    source.write_text(f"def f():\n    {line}\n")
    assert len(list(writing_calls(source))) == 1
    source.write_text(f"def f():\n    with atomic_path(target) as path:\n        {line}\n")
    assert list(writing_calls(source)) == []


class Watch:
    """Notes what this process's Python opens for writing and renames, below a folder."""

    def __init__(self):
        self.folder = None
        self.opened, self.renamed = [], []
        sys.addaudithook(self)  # for the life of the process: idle without a folder

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event == "open" and str(arguments[0]).startswith(self.folder):
            mode, flags = arguments[1:]
            if flags & 3 or any(letter in (mode or "") for letter in "wax+"):
                self.opened.append(Path(arguments[0]))
        elif event == "os.rename" and str(arguments[1]).startswith(self.folder):
            self.renamed.append((Path(arguments[0]), Path(arguments[1])))


def under_a_temporary_name(path):
    return any(map(is_temporary, path.parts))


@pytest.mark.fault(4)
def test_every_file_is_opened_under_a_temporary_name(tmp_path, monkeypatch):
    stand_ins(monkeypatch)
    small = Small(tmp_path / "run", tmp_path / "inputs")
    small.write_inputs()
    watch = Watch()
    watch.folder = str(small.folder)
    try:
        for step in STEPS:
            getattr(small, step)()
    finally:
        watch.folder = None
    assert len(watch.opened) > 20
    assert [path for path in watch.opened if not under_a_temporary_name(path)] == []
    assert [pair for pair in watch.renamed if not under_a_temporary_name(pair[0])] == []
    # what libraries write past Python's own files has its name from a rename too
    final = {path for _, path in watch.renamed}
    written = {path for path in small.folder.rglob("*") if path.is_file()}
    assert {path for path in written if path.parent != small.shards} <= final
