"""The page of ``delvm VERB --help``, made from the comments in conf/, which Hydra does not read."""

from pathlib import Path
from typing import Any

import yaml

from delvm.configs import config_root
from delvm.errors import UserError

# Hydra's flags. A capital or | stands for the value that a flag takes.
FLAGS = {
    "-h, --help": "this page, with the options of --config-dir",
    "-m, --multirun": "run once for each combination of values: seed=0,1 student=tiny,small",
    "-c, --cfg job|hydra|all": "print the config instead of running",
    "--resolve": "with --cfg: with interpolations resolved",
    "-p, --package KEY": "with --cfg: only this part",
    "-cd, --config-dir DIR": "your own config files, searched after the project's",
    "-cp, --config-path DIR": "config files in place of the project's",
    "-cn, --config-name NAME": "a primary config of another name",
    "-i, --info [WHAT]": "how the config is composed: all, config, defaults, defaults-tree, "
    "plugins, searchpath",
    "-r, --run": "run once, where a config file asks for a sweep",
    "-sc, --shell-completion": "install=SHELL, uninstall=SHELL or query=SHELL",
    "--hydra-help": "Hydra's own page",
}
# Options in the directories of a verb that are for other verbs.
_OF_OTHERS = {"evaluate": {"executor": {"processes", "submitit"}}}


def _folders(verb: str, config_dir: str | None = None) -> list[Path]:
    folders = [config_root(verb)]
    if config_dir is not None:
        folders.append(Path(config_dir))
        if not folders[-1].is_dir():
            raise UserError(f"config directory not found: {config_dir} (set --config-dir)")
    return folders


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8")) or {}


def _defaults(path: Path) -> dict[str, Any]:
    """Group -> option, of the defaults list of a file."""
    found = {}
    for entry in _read(path).get("defaults", []):
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith("override "):
                found[group.partition("@")[0]] = option
    return found


def groups(verb: str, config_dir: str | None = None) -> dict[str, list[str]]:
    """A verb's config groups, nested ones (module/loss) included, each with the default options."""
    found: dict[str, list[str]] = {}
    for group, option in _defaults(config_root(verb) / f"{verb}.yaml").items():
        found[group] = option if isinstance(option, list) else [option] if option else []
        for folder in _folders(verb, config_dir):
            # Outer groups come before inner ones.
            for nested in sorted(each for each in (folder / group).rglob("*") if each.is_dir()):
                name = nested.relative_to(folder).as_posix()
                outer = name.rpartition("/")[0]
                default = _nested_default(verb, found[outer], outer, nested.name)
                found.setdefault(name, default)
    return found


def _nested_default(verb: str, options: list[str], group: str, nested: str) -> list[str]:
    files = [config_root(verb) / group / f"{option}.yaml" for option in options]
    chosen = [_defaults(file).get(nested) for file in files if file.is_file()]
    return [each for each in chosen if each]


def options(verb: str, group: str, config_dir: str | None = None) -> dict[str, str]:
    """The options of a group, each with the first comment line of its file."""
    found = {}
    for folder in _folders(verb, config_dir):
        for path in sorted((folder / group).glob("*.yaml")):
            lines = path.read_text("utf-8").splitlines()
            comments = [line[1:].strip() for line in lines if line.startswith("#")]
            found[path.stem] = next((line for line in comments if not line.startswith("@")), "")
    others = _OF_OTHERS.get(verb, {}).get(group, set())
    return {name: comment for name, comment in found.items() if name not in others}


def option_with(verb: str, group: str, key: str) -> str | None:
    """GROUP=OPTION of an option that has a key, if one has.

    The option of a nested group is named by the option of the outer group that takes it.
    """
    folder = config_root(verb)
    for path in sorted((folder / group).glob("*.yaml")) if group in groups(verb) else []:
        if key in _read(path):
            return _option_that_takes(verb, group, path.stem)
    return None


def _option_that_takes(verb: str, group: str, option: str) -> str:
    """GROUP=OPTION of the outermost option by which an option of a nested group is taken."""
    outer, slash, inner = group.rpartition("/")
    for path in sorted((config_root(verb) / outer).glob("*.yaml")) if slash else []:
        if _defaults(path).get(inner) == option:
            return _option_that_takes(verb, outer, path.stem)
    return f"{group}={option}"


def option_with_group(verb: str, group: str) -> str | None:
    """GROUP=OPTION of an option that has a nested group (module/loss), if one has."""
    outer, slash, inner = group.rpartition("/")
    for path in sorted((config_root(verb) / outer).glob("*.yaml")) if slash else []:
        if inner in _defaults(path):
            return _option_that_takes(verb, outer, path.stem)
    return None


def about(verb: str) -> tuple[str, list[str]]:
    """What a verb does, and examples: the comments that its primary config begins with."""
    lines = (config_root(verb) / f"{verb}.yaml").read_text("utf-8").split("\ndefaults:")[0]
    first, *others = (line.lstrip("#").strip() for line in lines.splitlines())
    return first, [line for line in others if line]


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, right in rows if right)  # lines of comment stick out
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]


def page(verb: str, config_dir: str | None = None) -> str:
    """The help page of a verb."""
    what, examples = about(verb)
    text = (config_root(verb) / f"{verb}.yaml").read_text("utf-8")
    body = text.split("\n\n", 1)[1].split("\nhydra:", 1)[0]
    keys = [line.partition(" # ")[::2] for line in body.splitlines() if line.strip()]
    lines = [f"delvm {verb}: {what}", "", f"usage: delvm {verb} [key=value ...] [flags]"]
    lines += ["", "keys (key=value; ??? must be given):", *_columns(keys)]
    listed = {
        group: (default, options(verb, group, config_dir))
        for group, default in groups(verb, config_dir).items()
    }
    if listed:
        width = max(len(name) for _, found in listed.values() for name in found)
        lines += ["", "groups (group=option; * is the default):"]
        lines += _columns(
            [
                (
                    group if i == 0 else "",
                    f"{'*' if name in default else ' '} {name:<{width}}  {comment}",
                )
                for group, (default, found) in listed.items()
                for i, (name, comment) in enumerate(found.items())
            ]
        )
        lines.append(f"  keys inside a group: delvm {verb} --cfg job; set as GROUP.KEY=VALUE")
    lines += ["", "flags:", *_columns(list(FLAGS.items()))]
    lines += ["", "examples:", *(f"  {example}" for example in examples)]
    return "\n".join(lines) + "\n"
