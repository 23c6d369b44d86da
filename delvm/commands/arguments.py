"""The words of a command line after the verb: overrides and Hydra's flags, in any order."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from delvm.commands.help import FLAGS
from delvm.errors import UserError, did_you_mean

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# Flag -> what stands for its value in the help, "" for none.
_VALUES = {
    name: names.split(", ")[-1].partition(" ")[2]
    for names in FLAGS
    for name in (each.split(" ")[0] for each in names.split(", "))
}
FLAG_NAMES = [name for name in _VALUES if name.startswith("--")]
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


def split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The overrides, and each flag with its value.

    Raises:
        UserError: a flag is unknown or lacks its value, or an argument is not an override.
    """
    overrides: list[str] = []
    flags: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            key, equals, _ = word.partition("=")
            if not key.lstrip("+") or not (equals or word.startswith("~")):
                raise UserError(f"'{word}' is not an override: write key=value, or group=option")
            overrides.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in _VALUES:
            raise UserError(f"unknown flag '{name}': {did_you_mean(name, _VALUES)}")
        takes = _VALUES[name]
        if takes and not equals and (takes != "[WHAT]" or rest[:1] and rest[0] in _INFO):
            if not rest:
                raise UserError(f"{name} takes a value: {takes}")
            value = rest.pop(0)
        if "|" in takes and value not in takes.split("|"):
            raise UserError(f"{name} takes {takes}, not '{value}'")
        flags[name] = value
    if ("--resolve" in flags or "--package" in flags or "-p" in flags) and not (
        "--cfg" in flags or "-c" in flags
    ):
        raise UserError("--resolve and --package go with --cfg job")
    return overrides, flags


def name_by_what_varies(overrides: Sequence[str]) -> list[str]:
    """Overrides that leave what all jobs of a sweep share out of the names of their outputs.

    Raises:
        UserError: a sweep names a value twice, for which two jobs would share an output.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for each in parsed:
        if each.is_discrete_sweep():
            values = [str(value) for value in each.sweep_string_iterator()]
            if len(set(values)) < len(values):
                raise UserError(f"{each.input_line} names a value twice: leave one out")
    if any(override.startswith(_EXCLUDED) for override in overrides):
        return []
    shared = [each.key_or_group for each in parsed if not each.is_sweep_override()]
    return [f"{_EXCLUDED}=[{','.join(repr(key) for key in shared)}]"]
