"""Hydra's and OmegaConf's errors in one line each, with the nearest valid name."""

import types
from collections.abc import Iterable
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from delvm.commands import help
from delvm.errors import UserError, closest_match, did_you_mean

EXAMPLES = {"prompt": "FOLDER", "query": "PICTURE", "teacher.checkpoint": "PATH"}
# Group of Hydra -> what packages add to it.
_PLUGINS = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher",
    },
    "hydra/sweeper": {"optuna": "hydra-optuna-sweeper"},
    "hydra/sweeper/sampler": {"tpe": "hydra-optuna-sweeper"},
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list, as [a,b]",
    dict: "a dictionary, as {a: 1}",
}


def refuse_malformed(override: str) -> None:
    """Refuse an argument that is no override at all.

    Raises:
        UserError: it has no key, or no value.
    """
    key, equals, _ = override.partition("=")
    if not key.lstrip("+") or not (equals or override.startswith("~")):
        raise UserError(f"'{override}' is not an override: write key=value, or group=option")


def unknown_key(name: str, siblings: Iterable[str], everywhere: Iterable[str] = ()) -> str:
    """The line for a key that does not exist.

    Args:
        name: the key in full, dots and all.
        siblings: keys that do exist beside it.
        everywhere: all keys of the config in full; one below the same parent that ends alike is
            proposed when no sibling is near.
    """
    parent, _, leaf = name.rpartition(".")
    lead = f"{parent}." if parent else ""
    close = closest_match(leaf, siblings)
    deeper = [key for key in everywhere if key.startswith(lead) and key.endswith(f".{leaf}")]
    if close is None and deeper:
        return f"unknown key '{name}': did you mean '{deeper[0]}'?"
    if close is None:
        return f"unknown key '{name}': {did_you_mean(leaf, siblings)}"
    return f"unknown key '{name}': did you mean '{lead}{close}'?"


def missing(keys: Iterable[str]) -> str:
    """The line for mandatory keys without a value."""
    names = sorted(keys)
    example = " ".join(f"{name}={EXAMPLES.get(name, 'VALUE')}" for name in names)
    plural = "s" if len(names) > 1 else ""
    return f"missing value{plural} for {', '.join(names)}: set {example}"


def wanted(kind: Any) -> str:
    """What a type of a schema takes, in words."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        words = " or ".join(wanted(part) for part in parts)
        return f"{words} or null" if type(None) in get_args(kind) else words
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    return _WORDS.get(origin or kind, "keys of its own, as GROUP.KEY=VALUE")


def one_line(error: Exception, verb: str) -> str:
    """An error of composition as one line for the user."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    where = _file(error)
    if isinstance(error, MissingConfigException):
        return where + _unknown_option(error)
    # Hydra wraps what OmegaConf says: a bad override as cause, a bad config file as context.
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OmegaConfBaseException):
        inner = inner.__cause__ or inner.__context__
    if isinstance(inner, ConfigAttributeError | ConfigKeyError):
        return where + _unknown(inner)
    if isinstance(inner, OmegaConfBaseException):
        return where + _bad_value(inner, _override(error))
    if isinstance(error, YAMLError):
        return f"a config file is not valid YAML: {' '.join(str(error).split())}"
    return where + _hydra(str(error), verb)


def _file(error: Exception) -> str:
    """The config file at fault, where it is not the verb's own that names what is overridden."""
    text = str(error)
    file = text.split("'")[1] if text.startswith("In '") else ""
    # Hydra's own file names what it was told to override.
    return f"{file}.yaml: " if "/" in file and file != "hydra/config" else ""


def _unreadable(error: OverrideParseException) -> str:
    key, _, value = error.override.partition("=")
    reason = str(error).splitlines()[0].rstrip(".")
    quoted = value.replace("'", "\\'")
    return (
        f"cannot read the override {error.override} ({reason}): quote its value, "
        f"as \"{key}='{quoted}'\""
    )


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return " ".join(str(error).split("\nConfig search path")[0].split())
    if option in _PLUGINS.get(group, {}):
        return (
            f"{group}={option} needs {_PLUGINS[group][option]}, which is not installed: "
            "`pip install 'delvm[scale]'`"
        )
    return f"unknown option {group}={option}: {did_you_mean(option, error.options)}"


def _unknown(error: OmegaConfBaseException) -> str:
    node = error.parent_node
    name = str(error.full_key or error.key)
    if not isinstance(node, DictConfig):
        return f"unknown key '{name}'"
    siblings = [str(key) for key in node if key != "hydra"]
    return unknown_key(name, siblings, _every_key(node._get_root()))


def _every_key(node: Any, lead: str = "") -> list[str]:
    keys: list[str] = []
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return keys
    for key in map(str, node):
        if key == "hydra" and not lead:
            continue
        keys.append(f"{lead}{key}")
        keys += _every_key(node._get_node(key), f"{lead}{key}.")
    return keys


def _override(error: Exception) -> str:
    """The override that Hydra could not merge, or nothing."""
    text = str(error)
    start = "Error merging override "
    return text.removeprefix(start).splitlines()[0] if text.startswith(start) else ""


def _bad_value(error: OmegaConfBaseException, override: str) -> str:
    """A value of the wrong type: the schema's own field says what is wanted."""
    name = str(error.full_key or error.key or "").strip()
    reason = str(error).splitlines()[0].rstrip(".")
    node = error.parent_node
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    hints = get_type_hints(schema) if isinstance(schema, type) else {}
    kind = hints.get(name.rpartition(".")[2])
    given = override.partition("=")[2]
    for each in get_args(kind) or (kind,):
        if isinstance(each, type) and issubclass(each, Enum) and given:
            return f"{override} is not {wanted(kind)}: {did_you_mean(given, each.__members__)}"
    if kind is not None and override:
        return f"{override} does not fit: {name} takes {wanted(kind)}"
    shown = override or name
    return f"{shown}: {reason}" if shown else reason


def _groups(verb: str) -> list[str]:
    return list(help.groups(help.config_dir(), verb))


def _hydra(text: str, verb: str) -> str:
    first = text.splitlines()[0] if text else "the config cannot be composed"
    if first.startswith("Ambiguous value"):
        override = first.split("'")[1]
        key, _, value = override.partition("=")
        return f"{override} is several values: add -m to sweep over them, or write {key}=[{value}]"
    if "requires --multirun" in first:
        return f"{first.split(chr(39))[1]} is a sweep: add -m"
    if "No match in the defaults list" in text and "Could not override '" in text:
        group = text.split("Could not override '")[1].split("'")[0]
        return f"delvm {verb} has no group '{group}': {did_you_mean(group, _groups(verb))}"
    if first.startswith("Config group override must be"):
        return f"a group takes the name of an option, as GROUP=OPTION: see delvm {verb} --help"
    return " ".join(text.split("\nConfig search path")[0].split())
