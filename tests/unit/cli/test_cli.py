import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from virnucpro import formats
from virnucpro.cli import cli
from virnucpro.merge.exports import EXPORTS

COMMANDS = [
    [],
    ["run"],
    ["status"],
    ["doctor"],
    ["split"],
    ["plan"],
    ["model"],
    ["model", "list"],
    ["model", "fetch"],
    ["model", "verify"],
    ["budget"],
    ["embed"],
    ["merge"],
    ["report"],
    ["report", "plans"],
    ["report", "run"],
    ["report", "overview"],
    ["store"],
    ["store", "status"],
    ["store", "verify"],
    ["store", "compact"],
    ["store", "drop"],
    ["store", "import"],
    ["store", "export"],
]


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "virnucpro", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert len(result.output.splitlines()) > 4


def every_command(group=cli, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(every_command()), ids=lambda value: str(value)[:40]
)
def test_every_option_says_what_it_is_for(path, command):
    parameters = command.get_params(click.Context(command))
    options = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_every_export_is_named_in_the_help_of_merge():
    (option,) = (option for option in cli.commands["merge"].params if option.name == "exports")
    assert [name for name in EXPORTS if name not in re.split(r"[ ,;]+", option.help)] == []


def test_commands_stand_in_the_order_of_the_data(tmp_path):
    listed = CliRunner().invoke(cli, ["--help"]).output.partition("Commands:")[2]
    assert "..." not in listed, "a summary is too long for its line"
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert [name for name in names if name in cli.commands] == [
        *(
            "run",
            "status",
            "doctor",
            "genes",
            "split",
            "plan",
            "model",
            "budget",
            "embed",
            "withdraw",
            "merge",
        ),
        *("report", "store"),
    ]


def test_shell_completes_commands_and_options(tmp_path):
    done = run(env={**os.environ, "_VIRNUCPRO_COMPLETE": "bash_source"})
    assert "_virnucpro_completion" in done.stdout
    asked = {"_VIRNUCPRO_COMPLETE": "bash_complete", "COMP_WORDS": "virnucpro m", "COMP_CWORD": "1"}
    done = run(env={**os.environ, **asked})
    assert done.stdout.split() == ["plain,model", "plain,merge"]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["split", "x.fa", "--sample", "s", "--shards", "d", "--records", "r"], "SPLIT_FORMAT"),
        (["plan", "x.fa", "--plan", "p", "--report", "r"], "PLAN_FORMAT"),
        (["model", "fetch", "demo", "--weights", "w", "--receipt", "r"], "MODEL_FORMAT"),
    ],
)
def test_a_caller_of_another_format_is_refused_before_any_work(command, number, tmp_path):
    wrong = getattr(formats, number) + 1
    result = run(*command, "--format", wrong, cwd=tmp_path)
    assert result.returncode == 2
    assert f"format {wrong}" in result.stderr
    assert os.listdir(tmp_path) == []


def test_bad_input_ends_with_2_and_a_sentence_without_a_traceback(tmp_path):
    fasta = tmp_path / "reads.fastq"
    fasta.write_text("@read1\nACGT\n+\nIIII\n")
    result = run(
        "split", fasta, "--sample", "s", "--shards", tmp_path / "s", "--records", tmp_path / "r"
    )
    assert result.returncode == 2
    assert str(fasta) in result.stderr
    assert "line 1" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_damaged_intermediate_file_ends_with_1(tmp_path):
    shard = tmp_path / "00000.fasta"
    shard.write_text(">00\nMK\n")
    result = run("plan", shard, "--plan", tmp_path / "p", "--report", tmp_path / "r")
    assert result.returncode == 1
    assert "00000.fasta" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.fault(41)
def test_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(
        "model",
        "fetch",
        "demo",
        "--weights",
        tmp_path / "file" / "w.safetensors",
        "--receipt",
        tmp_path / "r.json",
    )
    assert result.returncode == 1
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr


def test_usage_error_ends_with_2():
    assert run("split").returncode == 2
    assert run("merge", "--export", "parquet").returncode == 2


OUT_OF_MEMORY = """
import resource, sys
from virnucpro.cli import main
from virnucpro.sequences.split import split  # what is imported before the limit needs no more
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
sys.argv = ["virnucpro", "split", "giant.faa", "--sample", "s", "--shards", "shards",
            "--records", "records.parquet", "--max-record-residues", "2000000000"]
main()
"""


@pytest.mark.fault(15)
def test_out_of_memory_is_a_sentence_and_leaves_nothing(tmp_path):
    with (tmp_path / "giant.faa").open("wb") as handle:
        handle.write(b">giant\n")
        for _ in range(1500):
            handle.write(b"MKVLA" * 20_000 + b"\n")
    result = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert "out of memory" in result.stderr.lower()
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["giant.faa"]


ENDINGS = {
    "RuntimeError": (
        "RuntimeError('CUDA error: no kernel image\\nCompile with TORCH_USE_CUDA_DSA')",
        *(1, "error: RuntimeError: CUDA error: no kernel image\n  hint: "),
    ),
    "ImportError": ("ImportError('libcudart.so.12: cannot open')", 1, "error: ImportError: libc"),
    "MemoryError": ("MemoryError('Unable to allocate')", 1, "error: out of memory Unable to"),
    "OSError": ("OSError(5, 'Input/output error', 'x')", 1, "error: [Errno 5] Input/output"),
    "EOFError": ("EOFError('no end-of-stream marker')", 1, "error: a file ends too early no end-"),
    "InputError": ("InputError('is a folder', path='x')", 2, "error: x: is a folder\n"),
    "DataError": ("DataError('is missing', path='x')", 1, "error: x: is missing\n"),
    "KeyboardInterrupt": ("KeyboardInterrupt()", 130, "interrupted\n"),
    "SystemExit": ("SystemExit(143)", 143, ""),
}
# Another body in place of a command's own, whose imports take seconds.
ENDED = """
import sys
from virnucpro.cli import main, model
from virnucpro.cli.options import step
from virnucpro.errors import DataError, InputError
def end(**_options):
    raise {error}
model.model_verify.callback = step("model verify")(end)
sys.argv = ["virnucpro", {options} "model", "verify", "w"]
main()
"""


def ended(error, options=""):
    program = ENDED.format(error=error, options=options)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("case", ENDINGS)
def test_every_error_that_a_user_can_meet_is_a_status_and_a_sentence(case):
    error, status, said = ENDINGS[case]
    done = ended(error)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "TORCH_USE_CUDA_DSA" not in done.stderr.partition("\nerror: ")[2]
    line = json.loads(done.stderr.splitlines()[0])
    assert line["status"] == ("interrupted" if status > 2 else "failed")


def test_details_of_a_library_s_error_are_there_for_those_who_ask():
    done = ended("RuntimeError('CUDA error')", '"--verbose",')
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_mistake_of_the_program_keeps_its_traceback():
    done = ended("TypeError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    os.mkfifo(tmp_path / "slow.fasta")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "virnucpro", "split", tmp_path / "slow.fasta"),
            *("--sample", "s", "--shards", tmp_path / "out" / "shards"),
            *("--records", tmp_path / "out" / "records.parquet"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    writer = os.open(tmp_path / "slow.fasta", os.O_WRONLY)  # waits for the reader
    try:
        os.write(writer, b">a\nMKV\n" * 1000)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        os.close(writer)
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert (os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else []) == []


CLOSED = {
    "closed": ">&-",
    "a full disk": "> /dev/full",
    "a pipe that nobody reads": "| true",
}


@pytest.mark.fault(42)
@pytest.mark.parametrize("output", CLOSED)
def test_help_that_cannot_be_printed_is_a_quiet_failure(output, tmp_path):
    command = f"sleep 0.1; {sys.executable} -m virnucpro split --help {CLOSED[output]}"
    if "|" in command:  # the reader is gone before the writer starts
        command = (
            f"({command.replace('sleep 0.1;', 'sleep 0.5;').split('|')[0]}; echo $? > rc) | true"
        )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    status = int((tmp_path / "rc").read_text()) if "|" in command else result.returncode
    assert status == 1
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.mark.fault(42)
def test_files_are_whole_where_both_streams_are_closed(tmp_path):
    """The first file that is opened must not get the number of standard output."""
    (tmp_path / "in.faa").write_text(">a\nMKVLA\n>b\nMKKKK\n")
    line = (
        f"{sys.executable} -m virnucpro -v split in.faa --sample s --shards s --records r.parquet"
    )
    for folder, streams in ((tmp_path / "open", ""), (tmp_path / "closed", ">&- 2>&-")):
        folder.mkdir()
        (folder / "in.faa").write_bytes((tmp_path / "in.faa").read_bytes())
        assert subprocess.run(["bash", "-c", f"{line} {streams}"], cwd=folder).returncode == 0
    for path in (tmp_path / "open").rglob("*.*"):
        same = tmp_path / "closed" / path.relative_to(tmp_path / "open")
        assert path.read_bytes() == same.read_bytes()
    failed = f"{sys.executable} -m virnucpro plan no --plan p --report r >&- 2>&-"
    assert subprocess.run(["bash", "-c", failed], cwd=tmp_path).returncode == 1


@pytest.mark.fault(14)
def test_sigterm_ends_with_143_and_leaves_no_temporary_file(tmp_path):
    os.mkfifo(tmp_path / "slow.fasta")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "virnucpro", "split", tmp_path / "slow.fasta"),
            *("--sample", "s", "--shards", tmp_path / "out" / "shards"),
            *("--records", tmp_path / "out" / "records.parquet"),
        ],
        stderr=subprocess.PIPE,
    )
    writer = os.open(tmp_path / "slow.fasta", os.O_WRONLY)  # waits for the reader
    try:
        os.write(writer, b">a\nMKV\n" * 1000)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    finally:
        os.close(writer)
        process.kill()
    assert process.returncode == 143
    left = os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert left == []


@pytest.mark.parametrize(
    "command",
    [
        "budget --weights w --receipt r --out b",
        "embed s --plan p --weights w --model-receipt r --budget b --embeddings e --receipt r"
        " --step-log t",
    ],
    ids=["budget", "embed"],
)
def test_a_command_that_computes_waits_for_a_gpu_of_its_own(command, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: imaginary (UUID: GPU-0123)'\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:/bin", "VIRNUCPRO_LOCK_DIR": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    lock = tmp_path / "virnucpro-GPU-0123.lock"
    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-m", "virnucpro", *command.split()],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "waiting for a GPU: other jobs hold GPU-0123" in process.stderr.readline()
    _, said = process.communicate(timeout=60)
    assert "GPU: GPU-0123 (imaginary), waited" in said
    assert "is missing" in said  # only now it looks for its inputs
    assert process.returncode == 1


def test_models_are_listed_for_people_and_for_machines(tmp_path):
    people, machines = run("model", "list"), run("model", "list", "--json")
    assert "esm2_t48_15B_UR50D" in people.stdout
    assert "MIT" in people.stdout
    assert max(map(len, people.stdout.splitlines())) < 130
    assert {"name", "layers", "dimension", "licence"} <= json.loads(machines.stdout)[0].keys()


def test_model_is_fetched_where_the_workflow_looks_and_verified_by_name(tmp_path):
    assert run("model", "fetch", "demo", cwd=tmp_path).returncode == 0
    assert (tmp_path / "resources" / "models" / "demo.safetensors").exists()
    done = run("model", "verify", "demo", cwd=tmp_path)
    assert done.returncode == 0
    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["step"], line["status"], line["result"]["name"]) == (
        *("model verify", "done", "demo"),
    )


@pytest.mark.parametrize("option", ["--quiet", "--verbose"])
def test_quiet_says_nothing_and_verbose_still_works(option, tmp_path):
    done = run(option, "model", "verify", "demo.safetensors", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0 if option == "--quiet" else 1].startswith("error: ")
