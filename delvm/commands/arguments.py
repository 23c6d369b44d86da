"""The words of a command line after the verb: overrides and Hydra's flags, in any order."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from delvm.commands.help import FLAGS
from delvm.errors import UserError, closest_match, did_you_mean

# Flag -> what stands for its value in the help, "" for none.
VALUES = {
    name: names.split(", ")[-1].partition(" ")[2]
    for names in FLAGS
    for name in (each.split(" ")[0] for each in names.split(", "))
}
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides, and the flags with their values, as Hydra wants them one after the other.

    Raises:
        UserError: a flag is unknown.
    """
    overrides: list[str] = []
    flags: list[str] = []
    for word in words:
        if word.startswith("-"):
            name, *value = word.split("=", 1)
            if name not in VALUES:
                raise UserError(f"unknown flag '{name}': {_instead_of_flag(name)}")
            flags += [name, *value]
        elif flags and VALUES.get(flags[-1]) and (VALUES[flags[-1]] != "[WHAT]" or "=" not in word):
            flags.append(word)
        else:
            overrides.append(word)
    return overrides, flags


def _instead_of_flag(name: str) -> str:
    """The nearest flag, or how a key is set; Hydra's keys have no dashes."""
    key = name.lstrip("-").replace("-", "_")
    if closest_match(name, VALUES) or len(key) < 3:
        return did_you_mean(name, VALUES)
    return f"keys are set without dashes, as {key}=VALUE"


def name_by_what_varies(overrides: Sequence[str]) -> list[str]:
    """Overrides that leave what all jobs of a sweep share out of the names of their outputs.

    Raises:
        UserError: a sweep names a value twice, for which two jobs would share an output.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for each in filter(lambda each: each.is_discrete_sweep(), parsed):
        values = list(map(str, each.sweep_string_iterator()))
        if len(set(values)) < len(values):
            raise UserError(f"{each.input_line} names a value twice: leave one out")
    if any(override.startswith(_EXCLUDED) for override in overrides):
        return []
    shared = [each.key_or_group for each in parsed if not each.is_sweep_override()]
    return [f"{_EXCLUDED}=[{','.join(map(repr, shared))}]"]
