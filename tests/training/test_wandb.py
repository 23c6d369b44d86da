"""Runs of wandb: none if disabled, the same one for a resumed run, one line without login."""

import json
import os

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb.errors import UsageError

from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.training.loggers import WANDB_IDS, finish_loggers, start_wandb
from tests.training.runs import student_config


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Nobody is logged in, and what Lightning sets does not reach other tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    os.environ.pop("WANDB_MODE", None)


@pytest.mark.parametrize("before", [False, True], ids=["alone", "after a run that wrote"])
@pytest.mark.slow
def test_disabled_writes_nothing(monkeypatch, tokens, tmp_path, tmp_path_factory, before):
    if before:  # wandb keeps the mode that the variable has when a process first starts it
        wandb.teardown()
        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.init(project="p", dir=str(tmp_path_factory.mktemp("before"))).finish()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    existing = {*tmp_path.rglob("*wandb*")}
    build_run(student_config(tokens, 1, "logger=wandb", f"output_dir={tmp_path}/run")).fit()
    assert os.environ["WANDB_MODE"] == "disabled"
    assert {*tmp_path.rglob("*wandb*")} == existing


@pytest.mark.slow
def test_a_resumed_run_continues_its_run_of_wandb(tmp_path):
    def start(resumes, **settings):
        logger = WandbLogger(project="p", save_dir=str(tmp_path), offline=True, **settings)
        start_wandb([CSVLogger(tmp_path), logger], tmp_path, resumes)
        run_id = logger.experiment.id
        finish_loggers([logger], failed=False)
        return run_id

    first = start(resumes=False)
    assert json.loads((tmp_path / WANDB_IDS).read_text()) == {"ids": [first]}
    assert start(resumes=True) == first
    assert start(resumes=True, id="mine") == "mine"
    assert start(resumes=False) not in (first, "mine")
    (tmp_path / WANDB_IDS).write_text('{"ids": 3}')
    assert start(resumes=True) != first


def test_no_login_is_one_line(monkeypatch, tmp_path):
    def init(**settings):  # wandb remembers the mode of an earlier run in this process
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("wandb.init", init)
    logger = WandbLogger(project="p", save_dir=str(tmp_path), offline=False)
    with pytest.raises(UserError, match=r"wandb: .*: run `wandb login`, set WANDB_API_KEY, or set"):
        start_wandb([logger], tmp_path, resumes=False)
    assert not (tmp_path / WANDB_IDS).exists()
