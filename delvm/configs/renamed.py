"""Names that verbs and overrides had before: renamed.yaml is the table."""

from functools import cache
from pathlib import Path

import yaml

VERBS = {"gather": "runs"}


@cache
def table(verb: str) -> dict[str, str]:
    """Old name -> new name of a verb's keys, groups and options."""
    text = Path(__file__).with_name("renamed.yaml").read_text("utf-8")
    rows: dict[str, str] = yaml.safe_load(text)[verb]
    return rows


def new_name(verb: str, key: str, value: str = "") -> str | None:
    """What an old name is called now: a key, or GROUP=OPTION; None if it is not old.

    Args:
        key: dotted, without a sign before it.
        value: what it is set to.
    """
    rows = table(verb)
    if f"{key}={value}" in rows:
        return rows[f"{key}={value}"]
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (old := ".".join(parts[:length])) in rows:
            return ".".join([rows[old], *parts[length:]])
    return None
