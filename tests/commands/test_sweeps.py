"""Sweeps by every launcher and by a search: where jobs write, and what a mistake does."""

import json
import logging
import math
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from delvm.commands import app, explain, inspect, train
from delvm.errors import Diverged, Interrupted, UserError
from delvm.training.callbacks import AtomicCheckpoint
from tests.training.runs import curve, write_ids

# A run of three steps on the ids of `write_ids`.
TINY = (
    "data={path: tokens, pairs_per_sentence: 2, batch_size: 8}",
    "trainer={max_steps: 3, val_check_interval: 2, log_every_n_steps: 1, precision: 32-true}",
    "num_threads=1",
    "student.net={dim: 16, n_layers: 1, n_heads: 2, ffn_dim: 32, max_seq_len: 32, vocab_size: 16, "
    "codebook_dim: 8}",
    "tokenizer.net={resolution: 8, num_embeddings: 16, patch_size: 2, quantized_embed_dim: 8, "
    "channel_mult: [1, 1], attn_resolutions: []}",
    "logger=csv",
)


@pytest.fixture
def elsewhere(monkeypatch, root):
    """Processes that are started find this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_joblib_trains_to_the_end_next_to_a_job_that_fails(delvm, elsewhere, tmp_path):
    write_ids(tmp_path / "tokens")
    words = ("train", "-m", "sweep=joblib", *TINY, "output_dir=runs", "optimizer.lr=1e-3,-1")
    code, out, err = delvm(*words)
    line = "job 1: optimizer.lr=-1.0 is not above 0: set it to 1.5e-4"
    assert (code, out, err.splitlines()[-1]) == (2, "", f"delvm: {line}")
    assert "Traceback" not in err
    run = tmp_path / "runs/optimizer.lr=0.001"
    assert OmegaConf.load(run / ".hydra/config.yaml").optimizer.lr == 1e-3
    assert len(curve(run, "train/loss")) == 3 and (run / "student/config.json").exists()
    assert len(curve(run, "val/loss")) == 1
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "multirun.yaml",
        "optimizer.lr=0.001",
    ]


@pytest.mark.slow
def test_submitit_jobs_run_and_fail_like_any(delvm, elsewhere, tmp_path):
    words = ("prepare", "-m", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep")
    words += ("source.size=16", "source.num_test=1", "source.seed=7", "splits=[test]")
    code, out, err = delvm(*words, "shard_size=10,0", "output_dir=pairs")
    assert (code, out) == (2, "") and "Traceback" not in err
    assert err.splitlines()[-1].startswith("delvm: job 1: shard_size=0 is below 1")
    for manifest in (made := sorted((tmp_path / "pairs/shard_size=10").rglob("manifest.json"))):
        assert json.loads(manifest.read_text())["seed"] == 7
    assert made and not (tmp_path / "pairs/shard_size=0").exists()
    logs = [path.read_text() for path in (tmp_path / "sweep/.submitit").rglob("*_log.err")]
    assert sorted(log[:6] for log in logs) == ["job 0:", "job 1:"]
    assert any("delvm: job 1: shard_size=0 is below 1" in log for log in logs)


@pytest.mark.slow
def test_slurm_that_is_missing_is_one_line(delvm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = delvm("train", "-m", "sweep=submitit", "seed=0,1", "output_dir=runs")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert 'delvm: submitit failed: Could not detect "srun"' in err
    assert app.compose("train", ["sweep=submitit"]).resume == "auto"  # a job may come again


def test_the_end_of_a_traceback_is_the_reason():
    text = (
        "failed with trace:\n----\nTraceback:\n  File x\nModuleNotFoundError: No module 'a'\n--\n"
    )
    assert explain._reason(RuntimeError(text)) == "ModuleNotFoundError: No module 'a'"
    assert explain._reason(RuntimeError("no srun\nhere")) == "no srun"
    assert explain._reason(RuntimeError()) == "RuntimeError"


def searched(monkeypatch, outcomes):
    """Replace training by what it returns: in job n, the n-th of these objectives, or its error."""
    seen = []

    def work(cfg):
        outcome = outcomes[len(seen) % len(outcomes)]
        seen.append(cfg)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # Optuna's handler keeps the stderr of the test that imports it.
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [])
    monkeypatch.setattr(train, "train", work)
    monkeypatch.setattr(app, "check", lambda verb, cfg: None)
    return seen


@pytest.mark.slow
def test_a_search_goes_by_the_lowest_validation_loss(delvm, monkeypatch, tmp_path):
    diverged = Diverged("the gradient was not finite")
    seen = searched(monkeypatch, [2.5, diverged, math.inf, 2.25])
    words = ("train", "sweep=optuna", "output_dir=runs", "hydra.sweeper.n_trials=4")
    words += ("hydra.sweeper.storage='sqlite:///study.db'",)
    code, out, err = delvm(*words)
    assert (code, out) == (0, "")
    assert "job 0: objective 2.5000" in err and "job 2: objective inf" in err
    assert "job 1: the gradient was not finite; it counts as infinite" in err
    best = OmegaConf.load("runs/optimization_results.yaml")
    assert best.best_value == 2.25
    assert best.best_params["optimizer.lr"] == seen[3].optimizer.lr
    assert best.best_params["module.token_noise"] == seen[3].module.token_noise
    assert f"optimizer.lr={seen[3].optimizer.lr}" in err.splitlines()[-1]
    assert all(3e-5 <= cfg.optimizer.lr <= 3e-3 for cfg in seen)
    assert [Path(cfg.output_dir).name.split("_")[0] for cfg in seen] == ["0", "1", "2", "3"]
    # The study is continued, and its best stays.
    assert delvm(*words, "hydra.sweeper.sampler.seed=1")[0] == 0
    assert len({cfg.output_dir for cfg in seen}) == 8
    assert OmegaConf.load("runs/optimization_results.yaml").best_value == 2.25


@pytest.mark.slow
def test_mistakes_of_a_search_end_it_in_one_line(delvm, monkeypatch):
    words = ("train", "sweep=optuna", "output_dir=runs")

    def last(*more: str) -> str:
        code, out, err = delvm(*words, *more)
        assert (code, out, err.count("delvm: ")) == (2, "", 1) and "Traceback" not in err, err
        return err.splitlines()[-1]

    seen = searched(monkeypatch, [UserError("this one cannot be done")])
    assert last() == "delvm: job 0: this one cannot be done" and len(seen) == 1
    searched(monkeypatch, [None])
    assert "job 0: delvm train returned no objective to search by" in last()
    assert "hydra.sweeper.storage" in last("hydra.sweeper.storage='sqlite:///none/a.db'")
    monkeypatch.setattr(inspect, "run", lambda cfg: None)
    code, _, err = delvm("inspect", "-m", "hydra/sweeper=optuna", "seed=1,2")
    assert code == 2 and "delvm inspect returned no objective" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "group, option, package",
    [
        ("launcher", "joblib", "hydra-joblib-launcher"),
        ("launcher", "submitit_slurm", "hydra-submitit-launcher"),
        ("sweeper", "optuna", "hydra-optuna-sweeper"),
    ],
)
def test_a_launcher_that_is_not_installed_is_named(delvm, monkeypatch, group, option, package):
    app.compose("train")  # finds the plugins that are installed
    known = ConfigStore.instance().repo["hydra"][group]
    monkeypatch.delitem(known, f"{option}.yaml", raising=False)
    sweep = option.removesuffix("_slurm")
    assert delvm("train", f"sweep={sweep}") == (
        2,
        "",
        f"delvm: hydra/{group}={option} needs {package}: run `pip install 'delvm[scale]'`\n",
    )


def fake_run(best, latest):
    """A finished run with these results, as `train.objective` reads them."""
    checkpoint = AtomicCheckpoint()
    checkpoint.best = None if best is None else (best, 1)
    metrics = {} if latest is None else {"val/loss": torch.tensor(latest)}
    return SimpleNamespace(
        trainer=SimpleNamespace(callbacks=[checkpoint], callback_metrics=metrics)
    )


@pytest.mark.parametrize(
    ("best", "latest", "expected"),
    [(2.5, 2.75, 2.5), (None, math.nan, math.inf), (None, 2.0, 2.0), (None, None, None)],
)
def test_objective_is_the_lowest_validation_loss(best, latest, expected):
    assert train.objective(fake_run(best, latest)) == expected


def test_errors_travel_between_processes():
    stopped = pickle.loads(pickle.dumps(Interrupted("stopped at step 3", 15)))
    assert (str(stopped), stopped.exit_code) == ("stopped at step 3", 143)
