"""What docs/scale.md and the SLURM file say is so."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from delvm.commands.app import compose
from delvm.configs.validate import config_errors
from experiments.scale.memory import table

LAUNCHED = {
    "srun": {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_PROCID": "3"},
    "torchrun": {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"},
    "": {},
}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each `delvm train` in a text: what starts it, and its overrides."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.startswith("#") and (hit := re.search(r"delvm train\s+([a-z0-9]+=.*)", line)):
            starter = next(name for name in LAUNCHED if name in line)
            words = shlex.split(hit[1])
            found.append((starter, [word for word in words if word != "$@"]))
    return found


@pytest.mark.slow
def test_the_table_is_what_the_command_prints(root):
    lines = (root / "docs" / "scale.md").read_text("utf-8").splitlines()
    made = list(table())
    start = lines.index(made[0])
    assert lines[start : start + len(made)] == made and len(made) == 2 + 3 * 6


@pytest.mark.parametrize("name", ["docs/scale.md", "examples/slurm/train.sbatch"])
def test_what_is_to_be_typed_starts(root: Path, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    text = (root / name).read_text("utf-8")
    found = commands(text)
    assert [starter for starter, _ in found] == (
        ["", "torchrun"] if name.endswith(".md") else ["srun"]
    )
    for starter, words in found:
        with monkeypatch.context() as patch:
            for key, value in LAUNCHED[starter].items():
                patch.setenv(key, value)
            errors = config_errors("train", compose("train", words))
            assert [each for each in errors if not each.startswith("data.path=")] == []
    if name.endswith(".sbatch"):  # as many tasks as devices
        assert "--nodes=2\n" in text and "--ntasks-per-node=8\n" in text
