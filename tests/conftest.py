"""What every test stands on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The caller's shell and what lies in the checkout's outputs/ decide nothing."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):  # the launcher that started the tests
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
