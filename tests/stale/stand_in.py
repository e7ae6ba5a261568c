"""A stand-in for `virnucpro` that takes milliseconds: each file it writes says what it is made of.

It has the command line, the files and the exit statuses of the real one. A result's content is a
hash over the content of what it was made from and the options that matter, so two results are equal
if and only if they are of the same input and configuration.

`STAND_IN_FAULT` is STEP:END:MOMENT: a job of that step ends so, `before` its work, in the `middle`
of it, or `after` it: with a status (`exit 1`), or with a signal to Snakemake and all of its jobs
(`SIGTERM`).
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from virnucpro.files import write_bytes, write_json
from virnucpro.merge.requests import check_request, read_request, withdraw

CALLS = "calls.jsonl"
SIGNAL_SECONDS = 20.0  # Snakemake ends its jobs long before


def sha(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def content(path: str | Path) -> str:
    return Path(path).read_text()


class RefusedError(Exception):
    """Bad input: exit 2."""


class Job:
    """One call of the command line.

    Args:
        argv: subcommand, options as ``--name=value`` or ``--name value``, and after ``--`` words.
    """

    def __init__(self, argv: list[str]) -> None:
        own, _, words = "\0".join(argv).partition("\0--\0")
        given = own.split("\0")
        two = given[0] in ("report", "model")
        self.step = " ".join(given[: 2 if two else 1])
        self.words = words.split("\0") if words else []
        self.options: dict[str, list[str]] = {}
        rest = iter(given[2 if two else 1 :])
        for word in rest:
            name, equals, value = word.removeprefix("--").partition("=")
            self.options.setdefault(name, []).append(value if equals else next(rest))

    def __getitem__(self, name: str) -> str:
        return self.options[name][0]

    def matter(self, *names: str) -> dict[str, list[str]]:
        return {name: self.options.get(name, []) for name in names}


def end_here(job: Job, moment: str) -> None:
    """End as `STAND_IN_FAULT` says, where it says so for this step and moment, once."""
    step, end, when = os.environ.get("STAND_IN_FAULT", "::").split(":")
    if (step, when) != (job.step.split()[0], moment):
        return
    once = os.environ.get("STAND_IN_ONCE")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    note("ended", job, end)
    if end.startswith("exit"):
        status = int(end.split()[1])
        finish(job, "failed", status)
        os._exit(status)
    os.killpg(os.getpgrp(), getattr(signal, end))
    time.sleep(SIGNAL_SECONDS)
    os._exit(1)


def note(what: str, job: Job, identity: str) -> None:
    with open(CALLS, "a") as calls:
        calls.write(json.dumps([what, job.step, identity]) + "\n")


def finish(job: Job, status: str, code: int) -> None:
    print(json.dumps({"step": job.step, "status": status, "exit_status": code}), file=sys.stderr)


def write(job: Job, files: dict[str, str], last: dict[str, dict] | None = None) -> None:
    """Write a step's files, those of `last` sealed and at the end."""
    every = [*files.items(), *(last or {}).items()]
    for number, (path, text) in enumerate(every):
        if number == len(every) // 2:
            end_here(job, "middle")
        if isinstance(text, dict):
            write_json(Path(path), text, sealed=True)
        else:
            write_bytes(Path(path), text.encode())


def model_fetch(job: Job) -> None:
    source = job.words[0]
    text = content(source) if Path(source).exists() else source
    facts = {"name": "demo", "layers": 6, "has_lm_head": True, "weights_sha256": sha(text)}
    write(job, {job["weights"]: text}, {job["receipt"]: facts})


def budget(job: Job) -> None:
    facts = {"tokens_per_step": 4096, "tokens_per_second": 1e6}
    write(job, {}, {job["out"]: facts})


def read_records(paths: list[str], duplicate_ids: str) -> list[tuple[str, str]]:
    records: dict[str, str] = {}
    for path in paths:
        for part in content(path).split(">")[1:]:
            name, _, residues = part.partition("\n")
            if name in records and duplicate_ids == "error":
                raise RefusedError(f"{path}: id {name} was used before")
            while name in records:
                name += "_2"
            records[name] = residues.strip()
    return list(records.items())


def genes(job: Job) -> None:
    made = sha(job.matter("max-contig-bases"))[:9].upper()
    prefix, text = job["output"], content(job.words[0])
    check_content(job)
    note("finds", job, sha(text, made))
    files = {f"{prefix}.faa.gz": "".join(f"{line}\n" for line in text.splitlines())}
    files |= {f"{prefix}.gff.gz": made, f"{prefix}.contigs.parquet": sha(text, made)}
    write(job, files, {f"{prefix}.json": {"made": sha(text, made), "path": job.words[0]}})


def check_content(job: Job) -> None:
    for path, expected in zip(job.words, job.options.get("sha256", []), strict=True):
        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != expected:
            raise OSError(f"{path} changed meanwhile")


def split(job: Job) -> None:
    if "sha256" in job.options:
        check_content(job)
    records = read_records(job.words, job["duplicate-ids"])
    number = 1 if int(job["shard-tokens"]) > 1000 else 4
    shards: list[list[str]] = [[] for _ in range(number)]
    for residues in {residues for _, residues in records}:
        shards[int(sha(residues), 16) % number].append(residues)
    files, names = {}, []
    for index, sequences in enumerate(shards):
        text = "\n".join(sorted(sequences)) + "\n"
        names.append(f"{index:05d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
        files[f"{job['shards']}/{names[-1]}.fasta"] = text
    folder, parameters = job["shards"], job.matter("max-record-residues", "duplicate-ids")
    files[job["records"]] = json.dumps([records, job.words, parameters])
    files[f"{folder}/quarantine.tsv"] = sha(job.words)
    manifest = {"records": {"read": len(records)}, "shards": [{"name": name} for name in names]}
    write(job, files, {f"{folder}/manifest.json": manifest})


def plan(job: Job) -> None:
    matter = job.matter("token-budget", "max-sequence-length", "long-sequences", "window-overlap")
    report = {"batches": 1, "token_budget": 4096}
    write(job, {job["plan"]: sha(matter, content(job.words[0])), job["report"]: json.dumps(report)})


EMBED = ("store-accept", "dtype", "layers", "pooling", "pseudo-perplexity", "output-dtype")


def embed(job: Job) -> None:
    made = sha(
        *(job.matter(*EMBED), content(job["plan"]), content(job["weights"])),
        content(job.words[0]),
    )
    _, sample, *_, shard = Path(job["embeddings"]).parts  # two samples may have equal shards
    note("embeds", job, f"{sample} {shard} {made}")
    files = {job["embeddings"]: made, job["step-log"]: made}
    for name in ("residues", "pseudo_perplexity"):
        asked = job["pooling"] == "none" if name == "residues" else job["pseudo-perplexity"]
        if asked not in (False, "none"):
            files[job["embeddings"].replace(".npy", f".{name}.npy")] = made
    write(job, files, {job["receipt"]: {"made": made}})


def shard_files(job: Job, folder: str, suffix: str) -> list[str]:
    manifest = json.loads(content(f"{job['shards']}/manifest.json"))
    return [content(f"{job[folder]}/{shard['name']}{suffix}") for shard in manifest["shards"]]


def merge(job: Job) -> None:
    request = Path(job["request"])
    made = sha(content(job["records"]), shard_files(job, "embeddings", ".npy"))
    files = {
        job["output"]: f"{read_request(request).embeddings}\n{made}\n",
        job["quarantine"]: made,
    }
    for path in job.options.get("residues", []):
        files[path] = made
    found = [content(f"{prefix}.json") for prefix in job.options.get("genes", [])]
    for path in [*job.options.get("contigs", []), *job.options.get("contig-means", [])]:
        files[path] = sha(path, made, found)
    for export in job.options.get("export", []):
        kind, _, path = export.partition("=")
        files[f"{path}/ids.tsv" if kind == "fair-esm" else path] = sha(kind, made)
        if kind == "npy":
            files[path.replace(".npy", ".tsv")] = sha(kind, made)
    check_request(request)
    write(job, files)


PAGES = ("summary.html", "ledger.html", "length_distribution.svg", "duplicates.svg")
FIGURES = ("packing_efficiency.svg", "packing_by_shard.svg", "throughput.svg")


def report_run(job: Job) -> None:
    made = sha(shard_files(job, "embeddings", ".json"), content(job["quarantine"]))
    paths = [job["json"], job["tsv"], *(f"{job['report']}/{name}" for name in PAGES + FIGURES)]
    write(job, dict.fromkeys(paths, made))


def report_plans(job: Job) -> None:
    made = sha(shard_files(job, "plans", ".parquet"), job.matter("model", "layers", "pooling"))
    write(job, {job["json"]: made, job["tsv"]: made})


def report_overview(job: Job) -> None:
    made = sha([content(f"{job['results']}/{name}/packing_report.json") for name in job.words])
    names = [
        "overview.html",
        *(f"map_by_{each}.svg" for each in ("length", "sample", "truncation")),
    ]
    write(job, {f"{job['report']}/{name}": made for name in names})


def withdraw_results(job: Job) -> None:
    withdraw([Path(word) for word in job.words], Path(job["request"]), job["embeddings"])


STEPS = {
    "model fetch": model_fetch,
    "budget": budget,
    "genes": genes,
    "split": split,
    "plan": plan,
    "embed": embed,
    "merge": merge,
    "report run": report_run,
    "report plans": report_plans,
    "report overview": report_overview,
    "withdraw": withdraw_results,
}


def main() -> None:
    job = Job(sys.argv[1:])
    end_here(job, "before")
    try:
        STEPS[job.step](job)
    except RefusedError as error:
        print(error, file=sys.stderr)
        finish(job, "failed", 2)
        sys.exit(2)
    end_here(job, "after")
    finish(job, "done", 0)


if __name__ == "__main__":
    main()
