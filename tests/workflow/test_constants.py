"""Numbers and names that the workflow repeats, since rules must not import the package."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.workflow.snakemake_runs import ROOT
from virnucpro import __version__, formats
from virnucpro.merge.exports import EXPORTS
from virnucpro.model.config import KNOWN_MODELS


def constant(name: str) -> object:
    """Read a constant of config.smk, which is Python."""
    module = ast.parse((ROOT / "workflow" / "rules" / "config.smk").read_text())
    for node in module.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"config.smk has no {name}")


@pytest.mark.parametrize(
    "step", ["model", "genes", "split", "plan", "budget", "embed", "merge", "report"]
)
def test_format_numbers_are_those_of_the_package(step):
    assert constant("FORMATS")[step] == getattr(formats, f"{step.upper()}_FORMAT")


def test_version_is_that_of_the_package():
    assert constant("VERSION") == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_format_numbers_are_complete():
    numbers = {name for name in formats.__all__ if name.endswith("_FORMAT")}
    numbers.remove("STORE_FORMAT")  # of no step
    assert {f"{step.upper()}_FORMAT" for step in constant("FORMATS")} == numbers


def test_named_models_are_those_of_the_package():
    layers = {name: config.layers for name, config in KNOWN_MODELS.items()}
    assert constant("NAMED_MODELS") == layers


def test_exports_are_those_of_the_package():
    assert set(constant("EXPORT_FILES")) == set(EXPORTS)


@pytest.mark.parametrize(
    ("key", "known"),
    [("pooling", formats.POOLINGS), ("pseudo_perplexity", formats.PSEUDO_PERPLEXITIES)],
)
def test_choices_of_the_schema_are_those_of_the_package(key, known):
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    assert schema["properties"]["embed"]["properties"][key]["enum"] == list(known)


def in_environment(name: str) -> list[str]:
    """Give the lines of a conda environment."""
    path = ROOT / "workflow" / "envs" / f"{name}.yaml"
    return yaml.safe_load(path.read_text())["dependencies"]


def test_the_environment_of_contigs_is_the_other_with_what_finds_genes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = project["optional-dependencies"]["contigs"]
    further = set(in_environment("contigs")) - set(in_environment("virnucpro"))
    assert [text.replace(" ", "") for text in further] == [needed]
    assert set(in_environment("virnucpro")) <= set(in_environment("contigs"))
    scripts = [ROOT / "workflow" / "envs" / f"{n}.post-deploy.sh" for n in ("contigs", "virnucpro")]
    assert scripts[0].read_bytes() == scripts[1].read_bytes()


def test_the_conda_environment_has_what_the_package_needs():
    """Names and lower limits are those of pyproject.toml; torch alone is pinned, and fits.

    Snakemake is not there: it calls the rules from its own environment.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split("[>=]", text)[0]: text for text in project["dependencies"]}
    del needed["snakemake"]
    in_conda = {"matplotlib": "matplotlib-base", "torch": "pytorch"}
    offered = {text.split()[0]: text.replace(" ", "") for text in in_environment("virnucpro")}
    assert set(offered) == {in_conda.get(name, name) for name in needed} | {"pip", "python"}
    for name, text in needed.items():
        if name == "torch":
            assert Version(offered["pytorch"].partition("=")[2]) in Requirement(text).specifier
        else:
            assert offered[in_conda.get(name, name)] == text.replace(name, in_conda.get(name, name))


def test_shipped_config_spells_out_the_defaults():
    yaml = pytest.importorskip("yaml")
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())

    def defaults(properties: dict) -> dict:
        return {
            key: defaults(value["properties"]) if "properties" in value else value["default"]
            for key, value in properties.items()
        }

    shipped = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    assert shipped == defaults(schema["properties"])


def test_every_config_key_is_documented():
    yaml = pytest.importorskip("yaml")
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    readme = (ROOT / "config" / "README.md").read_text()
    for key, value in schema["properties"].items():
        for name in [f"{key}.{inner}" for inner in value.get("properties", {})] or [key]:
            assert f"| `{name}` |" in readme


@pytest.mark.fault(35)
def test_every_value_in_a_shell_command_is_quoted():
    for path in sorted(Path(ROOT / "workflow" / "rules").glob("*.smk")):
        for line in path.read_text().splitlines():
            if line.strip().startswith(('"', "'")) and "{" in line:
                for field in line.replace("{{", "").replace("}}", "").split("{")[1:]:
                    name = field.partition("}")[0]
                    kind = name.partition(".")[0].partition(":")[0]
                    if kind in {"input", "output", "params", "resources", "wildcards", "log"}:
                        assert name.endswith(":q"), f"{path.name}: {line}"
