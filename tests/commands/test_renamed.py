"""Every old name on the command line is refused with its new one, which exists."""

from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from delvm.commands import VERBS
from delvm.commands.help import groups, options
from delvm.configs import config_root
from delvm.configs.register import register
from delvm.configs.renamed import VERBS as RENAMED_VERBS
from delvm.configs.renamed import table

ROWS = [(verb, old, new) for verb in VERBS for old, new in table(verb).items()]


@cache
def configs(verb: str, group: str) -> list[DictConfig]:
    """The verb's config under each option of a group, or its default if that is no group."""
    register(verb)
    choices = [[f"{group}={option}"] for option in options(verb, group)] or [[]]
    with initialize_config_dir(str(config_root(verb)), version_base="1.3"):
        return [compose(verb, overrides) for overrides in choices]


def exists(verb: str, name: str) -> bool:
    """Whether a key, a group or GROUP=OPTION is known."""
    key, equals, value = name.partition("=")
    if key in groups(verb) and equals:
        return set(value.strip("[]").split(",")) <= options(verb, key).keys()
    parent, _, leaf = key.rpartition(".")
    nodes = [
        OmegaConf.select(cfg, parent) if parent else cfg
        for cfg in configs(verb, key.partition(".")[0])
    ]
    return key in groups(verb) or any(
        isinstance(node, DictConfig) and leaf in map(str, node) for node in nodes
    )


@pytest.mark.slow
@pytest.mark.parametrize("verb, old, new", ROWS, ids=[f"{verb} {old}" for verb, old, _ in ROWS])
def test_old_name_is_refused_with_the_new_one(delvm, verb, old, new):
    assert not exists(verb, old) or "=" in old, f"{old} is a name of today"
    names = [word for word in new.split() if word != "or"]
    assert all(exists(verb, name) for name in names), f"{new} does not exist"
    override = old if "=" in old else f"{old}=1"
    code, out, err = delvm(verb, override)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.endswith(f"it is now called {new}\n"), err


@pytest.mark.slow
def test_keys_below_an_old_name(delvm):
    line = "delvm: unknown key 'optim.lr': it is now called optimizer.lr\n"
    assert delvm("train", "optim.lr=1e-3") == (2, "", line)
    assert delvm("train", "+optim.lr=1e-3")[2].endswith("it is now called optimizer\n")


def test_a_foreign_part_may_have_a_key_of_an_old_name(delvm, tmp_path):
    (tmp_path / "mine/module").mkdir(parents=True)
    (tmp_path / "mine/module/foreign.yaml").write_text("_target_: a.Module\nmisread: 1\n")
    words = ("train", "-cd", "mine", "module=foreign", "module.misread=2", "--cfg", "job")
    code, out, err = delvm(*words)
    assert (code, err) == (0, "") and "misread: 2" in out


def test_old_names_in_config_files(delvm, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    text = "# @package _global_\ntrainer: {val_every: 3}\n"
    (tmp_path / "mine/experiment/old.yaml").write_text(text)
    code, _, err = delvm("train", "-cd", "mine", "experiment=old")
    assert (code, err) == (
        2,
        "delvm: experiment/old.yaml: unknown key 'trainer.val_every': it is now called "
        "trainer.val_check_interval\n",
    )


@pytest.mark.parametrize("verb", RENAMED_VERBS)
def test_old_verbs(delvm, verb):
    line = f"delvm: unknown verb '{verb}': it is now called {RENAMED_VERBS[verb]}\n"
    assert delvm(verb, "x=1") == (2, "", line)
