"""Typed schemas of every verb, the checks across them, and where conf/ is."""

from pathlib import Path

import delvm


def config_dir() -> Path:
    """conf/ of the checkout the package is run from, else the copy inside the installed package."""
    package = Path(delvm.__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def config_root(verb: str) -> Path:
    """The folder of a verb's primary config and of its groups.

    Hydra takes ``tokenizer=PATH`` for the choice of a group wherever the folder has a subfolder of
    that name. So the verbs that have such plain keys do not share a folder with `delvm train`.
    """
    return config_dir() if verb == "train" else config_dir() / "verbs"
