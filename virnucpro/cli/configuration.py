"""The workflow's configuration: its keys as options of a command, and a file that holds them all.

The schema of the workflow is the one source: names, types, choices, defaults and help come from it.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from virnucpro.cli.shipped import SCHEMA, shipped

__all__ = [
    "SHEET_KEY",
    "Key",
    "changes",
    "config_text",
    "configuration_keys",
    "given_values",
    "key_options",
]

#: The key that names the sample sheet, which is no option: `virnucpro run` writes the sheet.
SHEET_KEY = "samples"

# What `virnucpro run` does without these options, which is not to take the schema's default.
_WITHOUT = {"model": "none, it has to be named", "input_type": "what the files hold"}
_WIDTH = 98  # of a comment


@dataclass(frozen=True)
class Key:
    """A key of the configuration that has a value, not a section.

    Attributes:
        path: the names of its sections and its own, ``("embed", "dtype")``.
        schema: what the schema says of it.
    """

    path: tuple[str, ...]
    schema: Mapping[str, Any]

    def __str__(self) -> str:
        return ".".join(self.path)

    @property
    def parameter(self) -> str:
        """The name of its option's value: an identifier, and no other option's."""
        return "__".join(("config", *self.path))

    @property
    def is_list(self) -> bool:
        """Whether its value is a list."""
        return "items" in self.schema

    @property
    def items(self) -> Mapping[str, Any]:
        """What the schema says of its value, or of each value of a list."""
        items: Mapping[str, Any] = self.schema.get("items", self.schema)
        return items

    @property
    def default(self) -> Any:
        """Its value where nothing is said."""
        return self.schema["default"]

    def option(self) -> click.Option:
        """Make it an option, ``--dtype``; without a value it comes as None, a list as ()."""
        names = [f"--{self.path[-1].replace('_', '-')}", self.parameter]
        texts = [self.schema["description"]]
        if self.is_list:
            texts += [self.items["description"], "Once for each."]
        if "format" in self.items:
            texts.append("Here, a relative path counts from the folder of the call.")
        default = self.default if self.is_list else [self.default]
        shown = _WITHOUT.get(str(self)) or " ".join(map(str, default)) or "none"
        return click.Option(
            names,
            type=_click_type(self.items),
            multiple=self.is_list,
            help=f"{' '.join(texts)}  [default: {shown}]",
        )

    def resolve(self, value: Any) -> Any:
        """Return a value that means the same in every folder: a path is made absolute."""
        if isinstance(value, tuple):
            return [self.resolve(each) for each in value]
        kind = self.items.get("format")
        is_name = kind == "name-or-path" and ("/" not in value or "://" in value)
        if kind is None or (is_name and not Path(value).is_file()):
            return value
        return str(Path(value).expanduser().absolute())


def given_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the options of `key_options` were given, by the dotted names of the keys."""
    return {
        str(key): key.resolve(parameters[key.parameter])
        for key in configuration_keys()
        if parameters.get(key.parameter) not in (None, ())
    }


def _click_type(schema: Mapping[str, Any]) -> Any:
    """Return the type of an option for a value of the schema."""
    if "enum" in schema:
        return click.Choice([str(choice) for choice in schema["enum"]])
    least, most = schema.get("minimum"), schema.get("maximum")
    if schema["type"] == "integer":
        return click.INT if least is most is None else click.IntRange(least, most)
    if schema["type"] == "number":
        return click.FLOAT if least is most is None else click.FloatRange(least, most)
    return {"boolean": click.BOOL, "string": click.STRING}[schema["type"]]


@functools.cache
def configuration_keys() -> tuple[Key, ...]:
    """Return the keys of the configuration, in the order of the schema."""
    import yaml  # here, for every job of the workflow imports this module

    return tuple(_keys(yaml.safe_load(shipped(SCHEMA).read_bytes()), ()))


def _keys(schema: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Key]:
    for name, inner in schema["properties"].items():
        if inner["type"] == "object":
            yield from _keys(inner, (*path, name))
        else:
            yield Key((*path, name), inner)


def key_options() -> list[click.Option]:
    """Return the options of all keys but the sheet's."""
    return [key.option() for key in configuration_keys() if str(key) != SHEET_KEY]


def config_text(values: Mapping[str, Any]) -> str:
    """Return a configuration with every key and what it means, as YAML.

    Args:
        values: by the dotted names of their keys; the others get their defaults.
    """
    lines: list[str] = []
    section: tuple[str, ...] = ()
    for key in configuration_keys():
        if key.path[:-1] != section:
            section = key.path[:-1]
            lines += [f"{'  ' * depth}{name}:" for depth, name in enumerate(section)]
        indent = "  " * len(section)
        lines += textwrap.wrap(
            key.schema["description"],
            _WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        lines.append(indent + _entry(key.path[-1], values.get(str(key), key.default)))
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> str:
    """Write a key and its value on one line."""
    import yaml

    how: dict[str, Any] = {"allow_unicode": True, "width": float("inf")}
    if isinstance(value, list):
        return f"{name}: {yaml.safe_dump(value, default_flow_style=True, **how)}".strip()
    return str(yaml.safe_dump({name: value}, **how)).strip()


def changes(earlier: str, later: str) -> list[str]:
    """Say which keys two configurations differ in, ``embed.dtype: auto -> float16`` each."""
    import yaml

    before, after = (yaml.safe_load(text) or {} for text in (earlier, later))
    return [
        f"{key}: {_value(before, key)} -> {_value(after, key)}"
        for key in configuration_keys()
        if _value(before, key) != _value(after, key)
    ]


def _value(config: Any, key: Key) -> Any:
    """Return the value of a key in a configuration, its default where it is left out."""
    for name in key.path:
        config = config.get(name) if isinstance(config, dict) else None
    return key.default if config is None else config
