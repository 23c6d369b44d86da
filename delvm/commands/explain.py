"""What Hydra and OmegaConf raise, in one line each, with the nearest valid name."""

import os
import re
import traceback
import types
from collections.abc import Iterable
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from delvm.commands import help
from delvm.configs.renamed import new_name
from delvm.configs.store import walk
from delvm.errors import UserError, closest_match, did_you_mean, to_user_error

EXAMPLES = {"prompt": "DIR", "query": "IMAGE", "teacher.checkpoint": "PATH"}
# Words that people use for a value.
_ALIASES = {"gpu": "cuda"}
# Option of Hydra -> the package that adds it.
_PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
    "hydra/sweeper/sampler=tpe": "hydra-optuna-sweeper",
}
_PACKAGES = ("hydra", "hydra_plugins", "submitit", "joblib", "sqlalchemy", "optuna")
_TYPES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list, as [a,b]",
    dict: "a dictionary, as {a: 1}",
}


def explained(error: Exception, verb: str) -> Exception:
    """A UserError in one line for what the user can fix, else the error itself."""
    if isinstance(error, UserError):
        return error
    package = _raising_package(error)
    config_error = isinstance(error, HydraException | OmegaConfBaseException | YAMLError)
    if config_error or (isinstance(error, ValueError) and package.startswith("hydra")):
        return UserError(_one_line(error, verb))
    if package in ("submitit", "joblib"):
        return UserError(
            f"{package} failed: {_reason(error)}: finished jobs are kept; set resume=auto to "
            "continue the others, or hydra/launcher=basic to run them here"
        )
    if package in ("sqlalchemy", "optuna"):
        return UserError(
            f"hydra.sweeper.storage cannot be used: {_reason(error)}: set it to sqlite:///FILE in "
            "an existing directory"
        )
    return to_user_error(error) if isinstance(error, OSError) else error


def _raising_package(error: Exception) -> str:
    """Which of Hydra and the packages behind its plugins raised an error, or nothing."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    return next((each for each in _PACKAGES if f"{os.sep}{each}{os.sep}" in file), "")


def _reason(error: Exception) -> str:
    """What went wrong: the first line, or where the text is a traceback, its last one."""
    text = str(error)
    ends = re.findall(r"^\w[\w.]*(?:Error|Exception)\b.*", text, re.MULTILINE)
    return (ends or text.splitlines() or [type(error).__name__])[-1 if ends else 0][:300]


def unknown_key(verb: str, name: str, node: Any) -> str:
    """The line for a key that does not exist.

    Args:
        name: the key in full, dots and all.
        node: the config node that lacks it.
    """
    if new := new_name(verb, name):
        return f"unknown key '{name}': it is now called {new}"
    if not isinstance(node, DictConfig):
        return f"unknown key '{name}'"
    parent, _, leaf = name.rpartition(".")
    lead = f"{parent}." if parent else ""
    if option := help.option_with(verb, parent.replace(".", "/"), leaf):
        return f"unknown key '{name}': it is a key of {option}"
    below = [f"{path}{leaf}" for path, each in walk(node) if path and leaf in map(str, each)]
    siblings = [key for key in map(str, node) if key != "hydra" and not key.startswith("_")]
    close = closest_match(leaf, siblings) or (below[0] if below else None)
    hint = f"did you mean '{lead}{close}'?" if close else did_you_mean(leaf, siblings)
    return f"unknown key '{name}': {hint}"


def missing_values(keys: Iterable[str]) -> str:
    """The line for mandatory keys without a value."""
    names = sorted(keys)
    example = " ".join(f"{name}={EXAMPLES.get(name, 'VALUE')}" for name in names)
    return f"missing value{'s'[: len(names) > 1]} for {', '.join(names)}: set {example}"


def type_in_words(kind: Any) -> str:
    """What a key of this type takes."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        parts = [type_in_words(part) for part in get_args(kind) if part is not type(None)]
        return " or ".join([*parts, *["null"][: type(None) in get_args(kind)]])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    return _TYPES.get(origin or kind, "keys of its own, as GROUP.KEY=VALUE")


def _one_line(error: Exception, verb: str) -> str:
    if isinstance(error, OverrideParseException):
        return _parse_error(error)
    # A file that an error is in; Hydra's own name what the command line or another file overrides.
    text = str(error)
    file = text.split("'")[1] if text.startswith("In '") else ""
    where = f"{file}.yaml: " if "/" in file and file != "hydra/config" else ""
    if isinstance(error, MissingConfigException):
        return where + _unknown_option(error, verb)
    # Hydra wraps OmegaConf's errors: a bad override as cause, a bad config file as context.
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OmegaConfBaseException):
        inner = inner.__cause__ or inner.__context__
    if isinstance(inner, ConfigAttributeError | ConfigKeyError):
        name = str(inner.full_key or inner.key)
        key, _, value = text.partition(" use +")[2].partition("\n")[0].partition("=")
        if key.startswith(name) and (new := new_name(verb, key, value)):
            return f"unknown key '{key}': it is now called {new}"
        return where + unknown_key(verb, name, inner.parent_node)
    if isinstance(inner, OmegaConfBaseException):
        start = "Error merging override "
        override = text.removeprefix(start).splitlines()[0] if text.startswith(start) else ""
        return where + _type_error(inner, override, verb)
    if isinstance(error, YAMLError):
        return f"a config file is not valid YAML: {' '.join(text.split())}"
    return where + _composition_error(text, verb)


def _parse_error(error: OverrideParseException) -> str:
    key, _, value = error.override.partition("=")
    reason = str(error).splitlines()[0].rstrip(".")
    quoted = value.replace("'", "\\'")
    return (
        f"cannot read the override {error.override} ({reason}): quote its value, "
        f"as \"{key}='{quoted}'\""
    )


def _unknown_option(error: MissingConfigException, verb: str) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group or error.options is None:
        return " ".join(str(error).split("\nConfig search path")[0].split())
    if package := _PLUGINS.get(f"{group}={option}"):
        return f"{group}={option} needs {package}: run `pip install 'delvm[scale]'`"
    new = new_name(verb, group, option)
    hint = f"it is now called {new}" if new else did_you_mean(option, error.options)
    return f"unknown option {group}={option}: {hint}"


def _type_error(error: OmegaConfBaseException, override: str, verb: str) -> str:
    """A value of the wrong type: the schema's own field says what is wanted."""
    name = str(error.full_key or error.key or "").strip()
    node = error.parent_node
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    hints = get_type_hints(schema) if isinstance(schema, type) else {}
    kind = hints.get(name.rpartition(".")[2])
    value = override.partition("=")[2]
    for each in get_args(kind) or (kind,):
        if isinstance(each, type) and issubclass(each, Enum) and value:
            close = closest_match(_ALIASES.get(value, value), each.__members__)
            hint = f": did you mean '{close}'?" if close else ""
            if new := new_name(verb, name, value):
                hint = f": it is now called {new}"
            return f"{override} is not {type_in_words(kind)}{hint}"
    if kind is not None and override:
        return f"{override} does not fit: {name} takes {type_in_words(kind)}"
    shown, reason = override or name, str(error).splitlines()[0].rstrip(".")
    return f"{shown}: {reason}" if shown else reason


def _composition_error(text: str, verb: str) -> str:
    first = text.splitlines()[0] if text else "the config cannot be composed"
    if first.startswith("Ambiguous value"):
        override = first.split("'")[1]
        key, _, value = override.partition("=")
        return f"{override} is several values: add -m to sweep over them, or write {key}=[{value}]"
    if "requires --multirun" in first:
        return f"{first.split(chr(39))[1]} is a sweep: add -m"
    if "No match in the defaults list" in text and "Could not override '" in text:
        group = text.split("Could not override '")[1].split("'")[0]
        return f"delvm {verb} has no group '{group}': {did_you_mean(group, help.groups(verb))}"
    if first.startswith("Config group override must be"):
        return f"a group takes the name of an option, as GROUP=OPTION: see delvm {verb} --help"
    return " ".join(text.split("\nConfig search path")[0].split())
