"""Reads and checks the configuration and the sample sheet; every helper of the rules is here."""

import json
import math
import os
import re
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import validate

# The format numbers of virnucpro.formats. Snakemake doesn't track the package's code: a number in
# a rule's params is what re-runs that rule, and those after it, when its output changes.
FORMATS = {
    "model": 1,
    "split": 1,
    "plan": 2,
    "budget": 1,
    "embed": 2,
    "merge": 2,
    "report": 4,
}

# The models that have a name; virnucpro.model.config knows their shapes.
NAMED_MODELS = (
    "demo",
    "esm2_t6_8M_UR50D",
    "esm2_t12_35M_UR50D",
    "esm2_t30_150M_UR50D",
    "esm2_t33_650M_UR50D",
    "esm2_t36_3B_UR50D",
    "esm2_t48_15B_UR50D",
)

# The files of each export; the first is the one that the command line names.
EXPORT_FILES = {
    "parquet": ["results/{sample}/embeddings.parquet"],
    "npy": ["results/{sample}/embeddings.npy", "results/{sample}/embeddings.tsv"],
    "uniprot-h5": ["results/{sample}/embeddings.h5"],
    "fair-esm": ["results/{sample}/fair_esm"],
}

# What an embed job may take before its first step: imports, weights from a cold shared disk.
EMBED_START_MINUTES = 15
# Tokens of a shard above which keeping every residue is warned of: 51 GB of 650M in float16.
MANY_RESIDUES = 20_000_000
# Samples that are described one by one before a run.
LISTED_SAMPLES = 20

os.environ.update(
    # A snakemake that is called by its full path finds the `virnucpro` installed beside it.
    PATH=os.pathsep.join(
        [str(Path(sys.executable).parent), os.getenv("PATH", os.defpath)]
    ),
    # Where envs/virnucpro.post-deploy.sh installs the package from, under `--sdm conda`.
    VIRNUCPRO_SOURCE=workflow.current_basedir.join("../..").get_path_or_uri(
        secret_free=True
    ),
)


# ---- configuration and sample sheet -------------------------------------------------------------


def read_values(values, schema):
    """Read what `--config embed='{layers: [3]}'` leaves as text where the schema wants a number."""
    for key, inner in schema["properties"].items():
        if inner["type"] == "object" and key in values:
            values[key] = values[key] or {}  # a section without a line below it
            if not isinstance(values[key], dict):
                raise WorkflowError(
                    f"config: {key} is a section, not a value: give its keys, as in "
                    f"--config {key}='{{{next(iter(inner['properties']))}: ...}}'"
                )
            read_values(values[key], inner)
        elif isinstance(values.get(key), list):
            values[key] = [read_value(item, inner["items"]) for item in values[key]]
        elif key in values:
            values[key] = read_value(values[key], inner)


def read_value(value, schema):
    """Read one value as YAML, where it is text and the schema wants something else."""
    if isinstance(value, str) and schema["type"] != "string":
        return yaml.safe_load(value)
    return value


def check_plan():
    """Refuse values of `plan` that don't go together, before any work."""
    longest = config["plan"]["max_sequence_length"] + 2
    if config["plan"]["token_budget"] < longest:
        raise WorkflowError(
            f"config: plan.token_budget is {config['plan']['token_budget']}, but a sequence of "
            f"plan.max_sequence_length residues with its BOS and EOS takes {longest} tokens: "
            f"raise plan.token_budget to {longest} or more, or lower plan.max_sequence_length"
        )
    if config["plan"]["long_sequences"] == "window" and (
        config["plan"]["window_overlap"] >= config["plan"]["max_sequence_length"]
    ):
        raise WorkflowError(
            f"config: plan.window_overlap is {config['plan']['window_overlap']}, but windows have "
            f"{config['plan']['max_sequence_length']} residues (plan.max_sequence_length): it has "
            "to be less than that"
        )


def name_model(source):
    """Give the name of a model's files: its own name, or one made from a local path."""
    if source in NAMED_MODELS:
        return source
    path = Path(source)
    if not path.exists():
        raise WorkflowError(
            f"config: model is {source!r}, which is none of {', '.join(NAMED_MODELS)}, nor a .pt "
            "file or a folder in the Hugging Face layout that exists here"
        )
    path = path.resolve()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name if path.is_dir() else path.stem)
    return name.lstrip("._-") or "model"


SCHEMA = yaml.safe_load(
    Path(workflow.source_path("../schemas/config.schema.yaml")).read_text()
)
read_values(config, SCHEMA)
validate(config, "../schemas/config.schema.yaml")
check_plan()
SAMPLES = read_samples(config["samples"])
MODEL = name_model(config["model"])
MODEL_WEIGHTS = f"resources/models/{MODEL}.safetensors"
MODEL_RECEIPT = f"resources/models/{MODEL}.json"
TOKEN_BUDGET = f"resources/token_budget/{MODEL}.json"


wildcard_constraints:
    sample=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    shard=r"\d{5}",
    model=re.escape(MODEL),


# ---- what is going to happen --------------------------------------------------------------------


def describe_run():
    """Say what the configuration asks for and how far it is, before any job and in a dry run."""
    files = [path for fastas in SAMPLES.values() for path in fastas]
    size = sum(os.path.getsize(path) for path in files if os.path.exists(path))
    size = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    demo = " (random weights: no biology)" if MODEL == "demo" else ""
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
    for sample in list(SAMPLES)[:LISTED_SAMPLES]:
        logger.info(f"  {sample}: {describe_sample(Path('results', sample))}")
    if len(SAMPLES) > LISTED_SAMPLES:
        logger.info(f"  and {len(SAMPLES) - LISTED_SAMPLES} more")


def describe_sample(folder):
    """Say how far a sample is."""
    manifest = folder / "shards" / "manifest.json"
    if not manifest.exists():
        return "to be split; its shards, and so their jobs, are known after that"
    split = json.loads(manifest.read_text())
    names = [shard["name"] for shard in split["shards"]]
    done = sum((folder / "embeddings" / f"{name}.json").exists() for name in names)
    merged = ", merged" if (folder / "embeddings.h5ad").exists() else ""
    return f"{split['records']['read']:,} records in {len(names)} shard(s), {done} embedded{merged}"


if workflow.is_main_process:
    describe_run()


# ---- input functions ----------------------------------------------------------------------------


def sample_fastas(wildcards):
    """The FASTA files of a sample, in the order of the sheet."""
    return SAMPLES[wildcards.sample]


def model_files(wildcards):
    """The local files that a model is made from; none for a model that has a name."""
    source = Path(config["model"])
    if config["model"] in NAMED_MODELS:
        return []
    if source.is_file():
        return [str(source)]
    return sorted(
        str(path)
        for path in source.iterdir()
        if path.suffix in {".json", ".safetensors", ".bin"}
    )


def shard_fasta(wildcards):
    """A shard's FASTA file, which the checkpoint writes into its folder."""
    folder = checkpoints.split.get(sample=wildcards.sample).output.shards
    return f"{folder}/{wildcards.shard}.fasta"


def split_manifest(wildcards):
    """The file that lists a sample's shards."""
    return (
        f"{checkpoints.split.get(sample=wildcards.sample).output.shards}/manifest.json"
    )


def shards_of(wildcards):
    """The names of a sample's shards, known once the checkpoint has run."""
    manifest = json.loads(Path(split_manifest(wildcards)).read_text())
    return [shard["name"] for shard in manifest["shards"]]


def of_all_shards(pattern):
    """Make an input function that fills `pattern` for every shard of a sample."""

    def files(wildcards):
        return expand(pattern, sample=wildcards.sample, shard=shards_of(wildcards))

    return files


# ---- params -------------------------------------------------------------------------------------


def fasta_sizes(wildcards):
    """A sample's files with their sizes, in order.

    Snakemake sees neither another order of the inputs nor another file under the same path if that
    file is older than the results; as params, both are seen.
    """
    files = [path for path in sample_fastas(wildcards) if os.path.exists(path)]
    return [f"{path}: {os.path.getsize(path)}" for path in files]


def option(dpath, name=None):
    """Give a configured value as a command line option, `--name=value`.

    Snakemake compares the set of a rule's params, not which of them has which value: two that swap
    their values look unchanged to it, unless the names are in the values.
    """
    name = name or Path(dpath).name.replace("_", "-")
    return f"--{name}={lookup(within=config, dpath=dpath)}"


def format_option(step):
    """Give the format number of a step as an option; raising it runs the step again."""
    return f"--format={FORMATS[step]}"


def folder_of(name):
    """Make a params function: the folder of the (first) input file called `name`."""

    def folder(wildcards, input):
        files = input[name]
        return str(Path(files if isinstance(files, str) else files[0]).parent)

    return folder


def window_options():
    """The overlap of windows as an option, where there are windows."""
    windows = config["plan"]["long_sequences"] == "window"
    return [option("plan/window_overlap")] if windows else []


def layer_options():
    """The pooled layers as options, `--layers=N` each."""
    return [f"--layers={layer}" for layer in config["embed"]["layers"]]


def extra_arrays():
    """The arrays of a shard beside its embeddings, as patterns of their files."""
    asked = {
        "residues": config["embed"]["pooling"] == "none",
        "pseudo_perplexity": config["embed"]["pseudo_perplexity"] != "none",
    }
    return [
        f"results/{{sample}}/embeddings/{{shard}}.{name}.npy"
        for name in asked
        if asked[name]
    ]


def residues_outputs():
    """The file of all residues, where they are kept."""
    return (
        ["results/{sample}/residues.h5"] if config["embed"]["pooling"] == "none" else []
    )


def unwanted_outputs(wildcards):
    """Files of a merge with another configuration, which would look as if they belonged to this."""
    optional = {"results/{sample}/residues.h5"}.union(*EXPORT_FILES.values())
    wanted = {*residues_outputs(), *map(str, export_outputs())}
    return sorted(path.format(sample=wildcards.sample) for path in optional - wanted)


def residues_options(wildcards, output):
    """The file of all residues as an option, `--residues=FILE`."""
    return [f"--residues={path}" for path in output.residues]


def export_outputs():
    """The files of the configured exports, and folders, which have no ending."""
    return [
        path if Path(path).suffix else directory(path)
        for export in config["merge"]["exports"]
        for path in EXPORT_FILES[export]
    ]


def export_options(wildcards):
    """The configured exports as options, `--export=KIND=FILE`."""
    return [
        f"--export={export}={EXPORT_FILES[export][0].format(sample=wildcards.sample)}"
        for export in config["merge"]["exports"]
    ]


# ---- resources ----------------------------------------------------------------------------------


def grows_with_attempt(amount):
    """Make a resource function: `amount` times the attempt, so a killed job gets more."""

    def grown(wildcards, attempt):
        return amount * attempt

    return grown


def embed_minutes(wildcards, input, attempt):
    """Minutes for a shard: three times what its tokens take at the measured rate, and start-up.

    Three times, because the rate was measured on one node, and others may be slower. Where plan or
    rate are not there yet (a dry run before the first run), four hours.
    """
    plan = Path(input.plan).with_suffix(".json")
    if not (plan.exists() and Path(input.budget).exists()):
        return 240 * attempt
    planned = json.loads(plan.read_text())
    tokens = planned["batches"] * planned["token_budget"]
    rate = json.loads(Path(input.budget).read_text())["tokens_per_second"]
    return math.ceil(EMBED_START_MINUTES + 3 * tokens / rate / 60) * attempt


def model_megabytes(wildcards, input, attempt):
    """Memory of a job with the model, in MB: torch and CUDA, the weights as they are on the disk and
    in the dtype that is computed in, and a shard's sequences, plan and vectors."""
    weights = file_megabytes(input.weights)
    others = sum(map(file_megabytes, input)) - weights
    return math.ceil(6000 + 2 * weights + 20 * others) * attempt


def file_megabytes(path):
    """The size of a file in MB; 0 where it is not there yet."""
    return Path(path).stat().st_size / 1e6 if Path(path).exists() else 0


def megabytes_for(least, times):
    """Make a resource function: so many MB and so many times the inputs, times the attempt."""

    def megabytes(wildcards, input, attempt):
        size = sum(map(file_megabytes, input))
        return math.ceil(least + times * size) * attempt

    return megabytes


def merge_megabytes(wildcards, input, attempt):
    """Memory of a merge, in MB: its own, and room for the embeddings in the page cache.

    Their rows are read in the order of the input, so from a disk each would be a read of its own;
    above 64 GB they have to be."""
    embeddings = sum(map(file_megabytes, input.embeddings))
    return math.ceil(4000 * attempt + min(embeddings, 64000))


def minutes_for(megabytes_a_minute):
    """Make a resource function: half an hour, and the inputs at this rate, times the attempt."""

    def minutes(wildcards, input, attempt):
        size = sum(map(file_megabytes, input))
        return math.ceil(30 + size / megabytes_a_minute) * attempt

    return minutes


def step_tokens(wildcards, input, attempt):
    """Tokens of one step on the device, halved at each attempt after the second.

    The second has as many as the first: most jobs that are repeated lost their node or were
    preempted, and with other steps a sum may round differently. Within an attempt, a step that runs
    out of memory is divided already.

    What was measured, where it was; Snakemake evaluates this once more just before the job starts,
    so the plan's budget stands in only where the job doesn't run (a dry run before the first run).
    """
    if Path(input.budget).exists():
        tokens = json.loads(Path(input.budget).read_text())["tokens_per_step"]
    else:
        tokens = config["plan"]["token_budget"]
    return max(
        tokens // 2 ** max(attempt - 2, 0), config["plan"]["max_sequence_length"] + 2
    )


def gpus():
    """GPUs of a job that computes. On `auto` one is asked for, also where none turns out to be."""
    return 0 if config["embed"]["device"] == "cpu" else 1
