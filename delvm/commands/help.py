"""The page of ``delvm VERB --help``, drawn from the comments in conf/."""

from pathlib import Path
from typing import Any

import yaml

import delvm
from delvm.commands import VERBS

FLAGS = {
    "-h, --help": "this page",
    "-m, --multirun": "run once for each combination of values: seed=0,1 student=tiny,small",
    "-c, --cfg job|hydra|all": "print the config instead of running",
    "--resolve": "with --cfg: with interpolations resolved",
    "-p, --package KEY": "with --cfg: only this part",
    "-cd, --config-dir DIR": "a folder of your own config files, searched after the project's",
    "-i, --info [WHAT]": "how the config is made: all, config, defaults, defaults-tree, plugins, "
    "searchpath",
}


def config_dir() -> Path:
    """conf/ of the checkout the package is run from, else the copy inside the installed package."""
    package = Path(delvm.__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def _primary(conf: Path, verb: str) -> dict[str, Any]:
    primary: dict[str, Any] = yaml.safe_load((conf / f"{verb}.yaml").read_text("utf-8"))
    return primary


def groups(conf: Path, verb: str) -> dict[str, str | None]:
    """A verb's config groups, each with the option that is taken when none is named."""
    found: dict[str, str | None] = {}
    for entry in _primary(conf, verb)["defaults"]:
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith("override "):
                found[group] = option
    return found


def options(conf: Path, group: str) -> dict[str, str]:
    """The options of a group, each with the first comment line of its file."""
    found = {}
    for path in sorted((conf / group).glob("*.yaml")):
        lines = path.read_text("utf-8").splitlines()
        comments = [line[1:].strip() for line in lines if line.startswith("#")]
        found[path.stem] = next((line for line in comments if not line.startswith("@")), "")
    return found


def keys(conf: Path, verb: str) -> list[str]:
    """The keys of a verb's own, outside its groups."""
    return [key for key in _primary(conf, verb) if key not in ("defaults", "hydra")]


def top_level(conf: Path, verb: str) -> list[str]:
    """What an override may begin with: ``key=``, ``group=``, or ``group.`` for its keys."""
    names = [f"{key}=" for key in keys(conf, verb)]
    for group, option in groups(conf, verb).items():
        names += [f"{group}="] if option is None else [f"{group}=", f"{group}."]
    return sorted(names)


def _lines(conf: Path, verb: str) -> list[str]:
    """The primary config's own lines, with their comments, in columns."""
    text = (conf / f"{verb}.yaml").read_text("utf-8")
    body = text.split("\n\n", 1)[1].split("\nhydra:", 1)[0]
    rows = [line.partition(" # ")[::2] for line in body.splitlines() if line.strip()]
    width = max(len(value) for value, _ in rows)
    return [f"  {value:<{width}}  {comment}".rstrip() for value, comment in rows]


def page(conf: Path, verb: str) -> str:
    """The help page of a verb."""
    about = VERBS[verb]
    lines = [f"delvm {verb}: {about.help}", "", f"usage: delvm {verb} [key=value ...] [flags]"]
    lines += ["", "keys (key=value; ??? must be given):", *_lines(conf, verb)]
    table = {
        group: (default, options(conf, group)) for group, default in groups(conf, verb).items()
    }
    if table:
        width = max(len(name) for _, each in table.values() for name in each)
        lines += ["", "groups (group=option; * is taken when none is named):"]
        lead = max(map(len, table))
        for group, (default, each) in table.items():
            for i, (name, comment) in enumerate(each.items()):
                star = "*" if name == default else " "
                head = group if i == 0 else ""
                lines.append(f"  {head:<{lead}} {star} {name:<{width}}  {comment}".rstrip())
        lines.append(f"  keys inside a group: delvm {verb} --cfg job; set as GROUP.KEY=VALUE")
    width = max(map(len, FLAGS))
    lines += ["", "flags:", *(f"  {flag:<{width}}  {text}" for flag, text in FLAGS.items())]
    lines += ["", "examples:", *(f"  {example}" for example in about.examples)]
    return "\n".join(lines) + "\n"
