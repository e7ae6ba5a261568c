"""Reads and checks the configuration: what it can tell is refused here, before any work."""

import json
import os
import re
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import validate

# The format numbers of virnucpro.formats. They are a part of the names of what the rules make, so
# raising one makes what it stands for, and all that is made of it, again.
FORMATS = {
    "model": 1,
    "genes": 1,
    "split": 3,
    "plan": 2,
    "budget": 2,
    "embed": 3,
    "merge": 3,
    "report": 5,
}

# The version of the package that these rules call.
VERSION = "0.1.0"

# The models that have a name, and their layers; virnucpro.model.config knows their shapes.
NAMED_MODELS = {
    "demo": 6,
    "esm2_t6_8M_UR50D": 6,
    "esm2_t12_35M_UR50D": 12,
    "esm2_t30_150M_UR50D": 30,
    "esm2_t33_650M_UR50D": 33,
    "esm2_t36_3B_UR50D": 36,
    "esm2_t48_15B_UR50D": 48,
}

# The files of each export; the first is the one that the command line names.
EXPORT_FILES = {
    "parquet": ["results/{sample}/embeddings.parquet"],
    "npy": ["results/{sample}/embeddings.npy", "results/{sample}/embeddings.tsv"],
    "uniprot-h5": ["results/{sample}/embeddings.h5"],
    "fair-esm": ["results/{sample}/fair_esm"],
}


def package_source():
    """Return what pip installs the package from under `--sdm conda`: what these rules come from.

    A checkout, the tag of a repository that the workflow is deployed from, or, where there is
    neither, the version in the index.
    """
    rules = workflow.current_basedir
    if hasattr(rules, "host"):  # github(...) and such
        commit = rules.tag or rules.commit or rules.branch
        return f"git+https://{rules.host}/{rules.repo}@{commit}"
    if hasattr(rules, "repo_path"):
        return f"git+file://{os.path.abspath(rules.repo_path)}@{rules.ref}"
    checkout = Path(rules.get_path_or_uri(secret_free=True)).parents[1]
    return (
        str(checkout)
        if (checkout / "pyproject.toml").exists()
        else f"virnucpro=={VERSION}"
    )


os.environ.update(
    # A snakemake that is called by its full path finds the `virnucpro` installed beside it.
    PATH=os.pathsep.join(
        [str(Path(sys.executable).parent), os.getenv("PATH", os.defpath)]
    ),
    # For workflow/envs/virnucpro.post-deploy.sh.
    VIRNUCPRO_SOURCE=os.getenv("VIRNUCPRO_SOURCE") or package_source(),
)


# As a module with a prefix, Snakemake puts it before the paths of rules. Paths in functions and params
# need it too.
MODIFIER = workflow.modifier.path_modifier


def here(path):
    """Return a path as it is found from the working directory, in a module with a prefix too."""
    return MODIFIER.replace_prefix(str(path))


def not_ours(path):
    """Return an input from outside the workflow as one that a module's prefix leaves alone."""
    return path if here(path) == path else os.path.abspath(path)


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
        elif key in values:
            values[key] = read_value(values[key], inner)


def read_value(value, schema):
    """Read one value as YAML, where it is text and the schema wants something else."""
    if isinstance(value, str) and schema["type"] != "string":
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return value  # which the schema refuses
    if isinstance(value, list) and schema["type"] == "array":
        return [read_value(item, schema["items"]) for item in value]
    if isinstance(value, float) and value.is_integer() and schema["type"] == "integer":
        return int(value)
    return value


def check_split():
    """Refuse a fraction that the schema lets pass, since it compares with nothing."""
    for key, value in config["split"].items():
        if value != value:
            raise WorkflowError(f"config: split.{key} is {value}, which is no number")


def check_plan():
    """Refuse values of `plan` that don't go together."""
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


def check_embed():
    """Refuse values of `embed` and `merge` that don't go together."""
    if (config["embed"]["device"], config["embed"]["dtype"]) == ("cpu", "float8"):
        raise WorkflowError(
            "config: embed.dtype float8 needs a GPU, but embed.device is cpu: use auto, which is "
            "float32 on a CPU, or another device"
        )
    coarse_residues = (
        config["embed"]["dtype"] == "float8" and config["embed"]["pooling"] == "none"
    )
    if coarse_residues and not config["embed"]["accept_float8_residues"]:
        raise WorkflowError(
            "config: embed.pooling none keeps single residues, which lose far more in embed.dtype "
            "float8 than their mean does: use float16, or accept it with "
            "embed.accept_float8_residues: true"
        )
    if config["embed"]["pooling"] == "max" and "fair-esm" in config["merge"]["exports"]:
        raise WorkflowError(
            "config: merge.exports has fair-esm, whose files have no vectors of embed.pooling max: "
            "leave out that export, or pool by mean or cls"
        )


def check_contigs():
    """Refuse what needs contigs where there are none."""
    if config["merge"]["contigs"] != "none" and not HAS_CONTIGS:
        raise WorkflowError(
            f"config: merge.contigs is {config['merge']['contigs']}, but input_type is "
            f"{config['input_type']}: only contigs have means, so set input_type: contigs, or "
            "merge.contigs: none"
        )


def check_layers(layers, model, last):
    """Refuse layers that the model, whose last layer is `last`, does not have, or has twice."""
    named = {}
    for layer in layers:
        number = layer + last + 1 if layer < 0 else layer
        if not 0 <= number <= last:
            raise WorkflowError(
                f"config: embed.layers has {layer}, but {model} has the layers 0 (the embedded "
                f"residues) to {last}, where -1 is the last"
            )
        if number in named:
            raise WorkflowError(
                f"config: embed.layers has {named[number]} and {layer}, which are the same layer "
                f"of {model}: leave out one of them"
            )
        named[number] = layer


def check_head(model, has_head):
    """Refuse a pseudo-perplexity of weights without the head that it needs."""
    if config["embed"]["pseudo_perplexity"] != "none" and not has_head:
        raise WorkflowError(
            f"config: embed.pseudo_perplexity needs the language-model head, which the weights of "
            f"{model} don't have: set it to none, or use fair-esm's file of the model"
        )


def check_model():
    """Refuse a model that is not there, and what its own files say that it cannot give."""
    source = config["model"]
    if source in NAMED_MODELS:
        check_layers(config["embed"]["layers"], source, NAMED_MODELS[source])
        return
    if not (Path(source).is_file() or Path(source).is_dir()):
        raise WorkflowError(
            f"config: model is {source!r}, which is none of {', '.join(NAMED_MODELS)}, nor a .pt "
            "file or a folder in the Hugging Face layout that exists here"
        )
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise WorkflowError(
            f"config: model is the folder {source!r}, which has no config.json: expected a folder "
            "in the Hugging Face layout"
        )
    try:
        described = json.loads(Path(source, "config.json").read_text())
        check_layers(
            config["embed"]["layers"], source, int(described["num_hidden_layers"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a .pt: how many layers it has is known once it was opened


SCHEMA = yaml.safe_load(
    Path(workflow.source_path("../schemas/config.schema.yaml")).read_text()
)
read_values(config, SCHEMA)
validate(config, "../schemas/config.schema.yaml")
check_split()
HAS_CONTIGS = config["input_type"] == "contigs"
check_plan()
check_embed()
check_contigs()
check_model()
