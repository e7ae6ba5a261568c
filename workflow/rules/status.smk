"""What is said before a run and after it, and what becomes of jobs that failed."""

import json
import os
import subprocess
import sys
from functools import cache
from os.path import normpath
from pathlib import Path

from snakemake.jobs import Job

# Tokens of a shard above which keeping every residue is warned of: 51 GB of 650M in float16.
MANY_RESIDUES = 20_000_000
# Samples that are described one by one before a run.
LISTED_SAMPLES = 20
# The exit status of a command that was given bad input or a bad configuration.
BAD_INPUT = 2


def describe_run():
    """Say what the configuration asks for and how far it is, before any job and in a dry run."""
    files = [path for fastas in SAMPLES.values() for path in fastas]
    size = sum(map(file_megabytes, files))
    size = f"{size:,.1f} MB" if size >= 1 else f"{size * 1e3:.1f} kB"
    demo = " (random weights: no biology)" if config["model"] == "demo" else ""
    embed = config["embed"]
    logger.info(
        f"virnucpro: {len(SAMPLES)} sample(s), {len(files)} file(s), {size}; model "
        f"{config['model']}{demo}, dtype {embed['dtype']}, device {embed['device']}"
    )
    tokens = config["split"]["shard_tokens"]
    if embed["pooling"] == "none" and tokens > MANY_RESIDUES:
        logger.warning(
            f"embed.pooling is none, and split.shard_tokens {tokens:,}: an array of all residues "
            "of a shard may take hundreds of GB, and a job that is killed computes its shard anew; "
            "5000000 is a good number"
        )
    if left := superseded():
        logger.info(
            f"  {len(left)} folders and files of earlier inputs or configurations are kept: they are "
            "used again where these come back, until prune removes them: "
            "`snakemake --cores 1 prune`, or `virnucpro run -o DIR -- prune`"
        )
    for sample in list(SAMPLES)[:LISTED_SAMPLES]:
        logger.info(f"  {sample}: {describe_sample(sample)}")
    if len(SAMPLES) > LISTED_SAMPLES:
        logger.info(f"  and {len(SAMPLES) - LISTED_SAMPLES} more")


def describe_sample(sample):
    """Say how far a sample is."""
    place = here(SPLIT.format(sample=sample, split=SPLIT_IDS[sample]))
    split = read_sealed(f"{place}/shards/manifest.json")
    earlier = ""
    if (
        not is_finished(sample)
        and Path(here(f"results/{sample}/embeddings.h5ad")).exists()
    ):
        earlier = "; its embeddings.h5ad is of an earlier input or configuration"
    if split is None:
        return (
            f"to be split; its shards, and so their jobs, are known after that{earlier}"
        )
    names = [shard["name"] for shard in split["shards"]]
    receipts = (
        here(f"{EMBEDDINGS}.json".format(sample=sample, shard=name)) for name in names
    )
    done = sum(Path(receipt).exists() for receipt in receipts)
    merged = ", merged" if is_finished(sample) else earlier
    return f"{split['records']['read']:,} records in {len(names)} shard(s), {done} embedded{merged}"


def is_finished(sample):
    """Whether a sample's embeddings.h5ad is there and of the present input and configuration."""
    return (
        Path(here(results_request(sample))).exists()
        and Path(here(f"results/{sample}/embeddings.h5ad")).exists()
    )


def check_weights():
    """Refuse what the weights cannot give, where they were converted already."""
    receipt = read_sealed(here(MODEL_RECEIPT))
    if receipt is not None:
        check_layers(config["embed"]["layers"], config["model"], receipt["layers"])
        check_head(config["model"], receipt["has_lm_head"])


# ---- jobs that failed ---------------------------------------------------------------------------


@cache
def check_settings():
    """Say what is missing where no profile of the workflow is in use, as in a module.

    It is known when Snakemake asks for the first input; a module has no `onstart` of its own.
    """
    scopes, limits = workflow.resource_scopes, workflow.global_resources
    missing = {}
    if gpus() and "gpu" not in limits and not scopes.is_local("gpu"):
        missing["--resources gpu=1"] = (
            "more jobs than the machine has GPUs wait for one"
        )
    if {trigger.item_to_choice() for trigger in workflow.rerun_triggers} - {
        "mtime",
        "input",
    }:
        missing["--rerun-triggers mtime input"] = (
            "a newer workflow computes again what it has"
        )
    if not workflow.dag_settings.force_incomplete:
        missing["--rerun-incomplete"] = "a run that was killed does not go on by itself"
    if missing:
        reasons = "; ".join(f"{option} ({why})" for option, why in missing.items())
        logger.warning(
            f"virnucpro: no profile gives these options: {reasons}. They stand in "
            "profiles/default of the workflow, which Snakemake reads if a copy is beside your "
            "Snakefile or where you call it"
        )


def restart_times(job):
    """How often a job that failed may be tried again: never after bad input or configuration.

    It would fail again in the same way, on a cluster after waiting for a GPU. Snakemake has no
    setting for this, so its property is replaced; what the job's command ended with is in the last
    line of its log.
    """
    return (
        0
        if any(exit_status(log) == BAD_INPUT for log in job.log)
        else job.rule.restart_times
    )


def exit_status(log):
    """Return the exit status that a command's log tells, or None."""
    try:
        text = Path(log).read_text(errors="replace")
    except OSError:
        return None
    for line in reversed(text.splitlines()):
        if line.startswith('{"step"'):
            try:
                return json.loads(line).get("exit_status")
            except ValueError:
                return None
    # It did not get as far as its step: an option was wrong.
    return (
        BAD_INPUT if text.startswith(("Usage: virnucpro", "error: --format")) else None
    )


def report_what_is_there():
    """Make the report on all samples of those that are finished, where others failed."""
    finished = [
        sample
        for sample in SAMPLES
        if is_finished(sample)
        and Path(f"results/{sample}/packing_report.json").exists()
    ]
    if not finished or len(finished) == len(SAMPLES):
        return
    Path("logs").mkdir(exist_ok=True)
    command = [
        "virnucpro",
        "report",
        "overview",
        "--results=results",
        "--report=results/_all",
    ]
    with open("logs/overview.log", "w") as log:
        try:
            done = (
                subprocess.run([*command, "--", *finished], stderr=log).returncode == 0
            )
        except OSError:  # the command is in an environment of its own
            done = False
    if done:
        missing = len(SAMPLES) - len(finished)
        logger.info(
            f"virnucpro: results/_all/overview.html is without {missing} sample(s)"
        )


def check_all_is_done():
    """Fail where Snakemake says that all is done, and a result is missing.

    It was seen to end early, with status 0, while it dealt with a checkpoint.
    """
    settings = workflow.dag_settings
    if set(settings.targets) - {"all"} or settings.until or settings.omit_from:
        return
    missing = [path for path in rules.all.input if not Path(path).exists()]
    if missing:
        raise WorkflowError(
            f"not all is done: {', '.join(missing[:LISTED_SAMPLES])} (run the same command again)"
        )


def tell_results():
    """Say where the results are, once a run has ended well."""
    finished = [sample for sample in SAMPLES if is_finished(sample)]
    for sample in finished[:LISTED_SAMPLES]:
        results = [f"results/{sample}/embeddings.h5ad"]
        for path in results + expand(means_outputs(), sample=sample):
            logger.info(f"virnucpro: {sample}: {os.path.abspath(path)}")
    if len(finished) > LISTED_SAMPLES:
        logger.info(f"virnucpro: and {len(finished) - LISTED_SAMPLES} more")


def check_targets():
    """Refuse a result as the target that is of an earlier input or configuration.

    Without a target the requests are asked for, and the result is made again. For a file Snakemake
    may say that nothing is to be done: it does not look behind a checkpoint that is to run.
    """
    words = set(map(normpath, sys.argv))  # Snakemake takes ./results for results
    for sample in SAMPLES:
        results = [*rules.merge.output, *rules.report.output]
        for request, patterns in (
            (results_request(sample), results),
            (plans_request(sample), rules.plan_report.output),
        ):
            for path in set(expand(patterns, sample=sample)).intersection(words):
                if Path(path).exists() and not Path(here(request)).exists():
                    raise WorkflowError(
                        f"{path} is of an earlier input or configuration: run the workflow"
                        " without a file as the target, and it is made again"
                    )


def needs_inputs():
    """Whether jobs are going to run, or a dry run is to tell which: not so for `--unlock` and such."""
    return not any(
        word in sys.argv
        for word in ("--unlock", "--report", "--summary", "--lint", "prune")
    )


if workflow.is_main_process:
    Job.restart_times = property(restart_times)
    if needs_inputs():
        check_fastas(config["samples"], SHEET)
        check_targets()
    check_weights()
    describe_run()


onsuccess:
    check_all_is_done()
    tell_results()


onerror:
    report_what_is_there()
