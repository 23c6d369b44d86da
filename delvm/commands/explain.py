"""What Hydra and OmegaConf raise, in one line each, with the nearest valid name."""

import os
import re
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

import delvm
from delvm.commands import help
from delvm.configs.register import schemas
from delvm.configs.renamed import new_name
from delvm.configs.store import walk
from delvm.errors import UserError, closest_match, did_you_mean, to_user_error

SHIPPED_DIR = Path(delvm.__file__).parent / "weights"
EXAMPLES = {"prompt": "DIR", "query": "IMAGE", "teacher.checkpoint": "PATH"}
# Words that people use for a value, and for a key.
_ALIASES = {"gpu": "cuda"}
_KEY_ALIASES = {
    "model": "student",
    "learning_rate": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "ckpt_path": "resume",
}
# Group whose options are names -> what to do with a path.
_PATHS = {
    "data": "for a directory set data.path={0}",
    "source": "for a directory set source.path={0}",
    "student": "for weights to start from set init_from={0}",
    "teacher": "for weights set teacher.checkpoint={0}",
    "tokenizer": "its weights are those that made the tokens in data.path",
}
# Option of Hydra -> the package that adds it.
_PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
    "hydra/sweeper/sampler=tpe": "hydra-optuna-sweeper",
}
# What raises an error outside of a job -> what to set.
_PACKAGES = {
    "submitit": "resume=auto to continue what is not done, or hydra/launcher=basic to run here",
    "joblib": "resume=auto to continue what is not done, or hydra/launcher=basic to run here",
    "sqlalchemy": "hydra.sweeper.storage to sqlite:///FILE in an existing directory",
    "optuna": "hydra.sweeper.storage to sqlite:///FILE in an existing directory",
}


def explained(error: Exception, verb: str) -> Exception:
    """A UserError in one line for what the user can fix, else the error itself."""
    if isinstance(error, UserError):
        return error
    file = traceback.extract_tb(error.__traceback__)[-1].filename if error.__traceback__ else ""
    of_hydra = isinstance(error, ValueError) and f"{os.sep}hydra{os.sep}" in file
    if of_hydra or isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return UserError(_one_line(error, verb))
    for package, fix in _PACKAGES.items():
        if f"{os.sep}{package}{os.sep}" in file:
            return UserError(f"{package} failed: {_reason(error)}: set {fix}")
    return to_user_error(error) if isinstance(error, OSError) else error


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
    alias = _KEY_ALIASES.get(name, "")
    if alias.partition(".")[0] in node:
        return f"unknown key '{name}': did you mean '{alias}'?"
    parent, _, leaf = name.rpartition(".")
    lead = f"{parent}." if parent else ""
    if option := help.option_with(verb, parent.replace(".", "/"), leaf):
        return f"unknown key '{name}': it is a key of {option}"
    below = [f"{path}{leaf}" for path, each in walk(node) if path and leaf in map(str, each)]
    siblings = [key for key in map(str, node) if key != "hydra" and not key.startswith("_")]
    close = closest_match(leaf, siblings) or (below[0] if below else None)
    hint = f"did you mean '{lead}{close}'?" if close else did_you_mean(leaf, siblings)
    return f"unknown key '{name}': {hint}"


def missing_values(keys: Collection[str]) -> str:
    """The line for mandatory keys without a value."""
    example = " ".join(f"{key}={EXAMPLES.get(key, 'VALUE')}" for key in sorted(keys))
    return f"missing value{'s'[: len(keys) > 1]} for {', '.join(sorted(keys))}: set {example}"


def _one_line(error: Exception, verb: str) -> str:
    text = str(error).split("\nConfig search path")[0]
    if isinstance(error, OverrideParseException):
        if "=" not in error.override and not error.override.startswith("~"):
            return (
                f"'{error.override}' is not KEY=VALUE (without spaces): see delvm {verb} --help "
                "for the keys"
            )
        lines = [line for line in text.splitlines() if not line.startswith(("Error ", "See "))]
        reason, (key, _, value) = " ".join(lines).rstrip("."), error.override.partition("=")
        quoted = "quote what has special characters"
        container = re.fullmatch(r"\[.*\]|\{.*\}", value)  # of which any part may be the reason
        if not container and not set(value) & set("'\","):
            quoted += f", twice: \"{key}='{value}'\""
        return f"cannot read the override {error.override} ({reason}): {quoted}"
    # A file that an error is in. (Hydra's own file names what is overridden elsewhere.)
    file = text.split("'")[1] if text.startswith("In '") else ""
    where = f"{file}.yaml: " if "/" in file and file != "hydra/config" else ""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return where + _unknown_option(error.missing_cfg_file or "", error.options, verb)
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
        return where + _bad_value(inner, text, verb)
    line = " ".join(text.split())
    if match := re.search(r"Ambiguous value for argument '(([^=]*)=(.*?))' 1\.", line):
        return f"{match[1]} is several values: add -m to sweep, or write {match[2]}=[{match[3]}]"
    if match := re.search(r"Could not load 'schema/(.+)/([^/']+)'", line):  # another verb's option
        options = sorted(schemas(verb)[1].get(match[1], {}))
        return (
            f"{match[1]}={match[2]} is not for delvm {verb}: set {match[1]}={' or '.join(options)}"
        )
    if match := re.search(r"Could not load '(.+)/([^/']+)'", line):
        return _unknown_option(f"{match[1]}/{match[2]}", help.options(verb, match[1]), verb)
    if line.startswith("Config group override must be"):
        return f"{line}: write GROUP=OPTION, see delvm {verb} --help"
    if match := re.search(r"Could not override '([^']*)'\.? No match in the defaults list", line):
        group = match[1].partition("@")[0]
        if option := help.option_with_group(verb, group):
            return f"{where}{group} is a group of {option}: set {option}"
        return (
            f"{where}delvm {verb} has no group '{group}': {did_you_mean(group, help.groups(verb))}"
        )
    return f"a config file is not valid YAML: {line}" if isinstance(error, YAMLError) else line


def _unknown_option(file: str, options: Collection[str], verb: str) -> str:
    first, _, path = file.partition("/")
    if first in _PATHS and ("/" in path or (SHIPPED_DIR / path).is_dir() or Path(path).exists()):
        names = ", ".join(help.options(verb, first))
        return f"{first}={path} is not one of {names}: {_PATHS[first].format(path)}"
    group, _, option = file.rpartition("/")
    if package := _PLUGINS.get(f"{group}={option}"):
        return f"{group}={option} needs {package}: run `pip install 'delvm[scale]'`"
    new = new_name(verb, group, option)
    hint = f"it is now called {new}" if new else did_you_mean(option, options)
    return f"unknown option {group}={option}: {hint}"


def _bad_value(error: OmegaConfBaseException, text: str, verb: str) -> str:
    name, reason = str(error.full_key or error.key or ""), str(error).splitlines()[0].rstrip(".")
    start = "Error merging override "
    override = text.removeprefix(start).splitlines()[0] if text.startswith(start) else name
    value = override.partition("=")[2]
    hint = ""
    if new := new_name(verb, name, value):
        hint = f": it is now called {new}"
    elif match := re.search(r"expected one of \[(.*)\]", reason):
        close = closest_match(_ALIASES.get(value, value), match[1].split(", "))
        hint = f": did you mean '{close}'?" if close else ""
    elif "is not a ListConfig" in reason:
        hint = f": set {name}=[{value}]"
        reason = "a list is needed"
    elif re.search(r"^Cannot (assign .* to Dict|merge DictConfig with ListConfig)", reason):
        hint = f": set {name}.NAME={value.strip('[]')}"
        reason = "names with a value each are needed"
    return f"{override}: {reason}{hint}" if override else reason
