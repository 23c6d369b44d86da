"""Sweeps by every launcher and by a search: the same folders, the same one line for a mistake."""

import json
import logging
import math
import os
import pickle
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from delvm.commands import app, inspect, jobs, sweeps, train
from delvm.errors import Diverged, Interrupted, UserError
from delvm.training.config import TrainConfig
from tests.training.runs import curve, write_ids

# A run of three steps on the ids of `write_ids`.
TINY = (
    "data={path: tokens, pairs_per_sentence: 2, batch_size: 8}",
    "trainer={max_steps: 3, val_every: 2, log_every: 1, threads: 1, precision: 32-true}",
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


def test_joblib_trains_to_the_end_beside_a_job_that_fails(delvm, elsewhere, tmp_path):
    write_ids(tmp_path / "tokens")
    words = ("train", "-m", "sweep=joblib", *TINY, "output=runs", "optim.lr=1e-3,-1")
    assert delvm(*words) == (
        2,
        "",
        "delvm: job 1: optim.lr=-1.0 is not above 0: set optim.lr=1.5e-4\n",
    )
    run = tmp_path / "runs/optim.lr=0.001"
    assert OmegaConf.load(run / ".hydra/config.yaml").optim.lr == 1e-3
    assert len(curve(run, "train/loss")) == 3 and (run / "student/config.json").exists()
    figure = train.figure(TrainConfig(output=str(run)))
    assert figure is not None and figure == min(curve(run, "val/loss"))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "multirun.yaml",
        "optim.lr=-1",
        "optim.lr=0.001",
    ]


def test_jobs_in_processes_of_their_own_do_not_share_a_folder(delvm, elsewhere):
    words = ("inspect", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "input=none")
    code, out, err = delvm(*words, "seed=1,1", "output=seen")
    assert (code, out) == (2, "")
    first, *each = err.splitlines()
    assert first == "delvm: 2 jobs failed:" and len(each) == 2
    assert sum("input=none not found" in line for line in each) == 1
    assert sum("two jobs of this sweep write to output=seen/seed=1" in line for line in each) == 1


def test_submitit_jobs_run_and_fail_like_any(delvm, elsewhere, tmp_path):
    words = ("prepare", "-m", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep")
    words += ("source.size=16", "source.test=1", "source.seed=7", "splits=[test]")
    code, out, err = delvm(*words, "shard_size=10,0", "output='by_${shard_size}'")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("delvm: job 1: shard_size=0 is below 1")
    for manifest in (made := sorted((tmp_path / "by_10").rglob("manifest.json"))):
        assert json.loads(manifest.read_text())["seed"] == 7
    assert made and not (tmp_path / "by_0").exists()
    logs = [path.read_text() for path in (tmp_path / "sweep/.submitit").rglob("*_log.err")]
    assert sorted(log[:6] for log in logs) == ["job 0:", "job 1:"]
    assert [path.name for path in (tmp_path / "sweep").glob(".jobs-*")] == []


def test_the_end_of_a_traceback_is_what_is_told():
    text = (
        "failed with trace:\n----\nTraceback:\n  File x\nModuleNotFoundError: No module 'a'\n--\n"
    )
    assert sweeps._reason(RuntimeError(text)) == "ModuleNotFoundError: No module 'a'"
    assert sweeps._reason(RuntimeError("no\n  srun")) == "no srun"


def test_slurm_that_is_not_there_is_one_line(delvm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = delvm("train", "-m", "sweep=submitit", "seed=0,1", "output=runs")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert 'hydra/launcher=submitit_slurm ended with RuntimeError: Could not detect "srun"' in err
    assert app.compose("train", ["sweep=submitit"]).resume == "auto"  # a job may come again


def searched(monkeypatch, losses):
    """Replace training by a file of curves: of job n, the n-th of these losses; or its error."""
    seen = []

    def run(cfg):
        given = losses[len(seen) % len(losses)]
        seen.append(cfg)
        if isinstance(given, Exception):
            raise given
        Path(cfg.output, "metrics.csv").write_text(
            "step,train/loss,val/loss\n0,5,\n" + "".join(f"{i},,{x}\n" for i, x in enumerate(given))
        )

    # Optuna's handler keeps the stderr of the test that imports it.
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [])
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(jobs, "check", lambda verb, cfg: None)
    return seen


def test_a_search_goes_by_the_lowest_validation_loss(delvm, monkeypatch, tmp_path):
    diverged = Diverged("the gradient was not finite")
    seen = searched(monkeypatch, [[3.0, 2.5, 2.75], diverged, ["nan"], [2.25, "nan"]])
    words = ("train", "sweep=optuna", "output=runs", "hydra.sweeper.n_trials=4")
    words += ("hydra.sweeper.storage='sqlite:///study.db'",)
    code, out, err = delvm(*words)
    assert (code, out) == (0, "")
    assert "job 0: val/loss 2.5000" in err and "job 2: val/loss inf" in err
    assert "job 1: the gradient was not finite; it counts as infinite" in err
    best = OmegaConf.load("runs/optimization_results.yaml")
    assert best.best_value == 2.25
    assert best.best_params["optim.lr"] == seen[3].optim.lr
    assert best.best_params["module.misread"] == seen[3].module.misread
    assert f"optim.lr={seen[3].optim.lr}" in err.splitlines()[-1]
    assert all(3e-5 <= cfg.optim.lr <= 3e-3 for cfg in seen)
    assert [Path(cfg.output).name.split("_")[0] for cfg in seen] == ["0", "1", "2", "3"]
    # The study is gone on with, and its best stays.
    assert delvm(*words, "hydra.sweeper.sampler.seed=1")[0] == 0
    assert len({cfg.output for cfg in seen}) == 8
    assert OmegaConf.load("runs/optimization_results.yaml").best_value == 2.25


def test_mistakes_of_a_search_end_it_in_one_line(delvm, monkeypatch):
    words = ("train", "sweep=optuna", "output=runs")

    def last(*more: str) -> str:
        code, out, err = delvm(*words, *more)
        assert (code, out, err.count("delvm: ")) == (2, "", 1) and "Traceback" not in err, err
        return err.splitlines()[-1]

    seen = searched(monkeypatch, [UserError("this one cannot be done")])
    assert last() == "delvm: job 0: this one cannot be done" and len(seen) == 1
    searched(monkeypatch, [[]])
    assert "has no validation, which the search goes by: set trainer.val_every=" in last()
    assert "storage=sqlite:///none/a.db cannot be used" in last(
        "hydra.sweeper.storage='sqlite:///none/a.db'"
    )
    monkeypatch.setattr(inspect, "run", lambda cfg: None)
    code, _, err = delvm("inspect", "-m", "hydra/sweeper=optuna", "seed=1,2")
    assert code == 2 and "delvm inspect gives no figure to search by" in err.splitlines()[-1]


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
        f"delvm: hydra/{group}={option} needs {package}, which is not installed: "
        "`pip install 'delvm[scale]'`\n",
    )


def test_a_figure_is_the_lowest_number(tmp_path):
    cfg = TrainConfig(output=str(tmp_path))
    assert train.figure(cfg) is None
    (tmp_path / "metrics.csv").write_text("step,val/loss\n1,2.5\n2,nan\n3,2.75\n")
    assert train.figure(cfg) == 2.5
    (tmp_path / "metrics.csv").write_text("step,val/loss\n1,nan\n")
    assert train.figure(cfg) == math.inf


def test_errors_come_whole_from_other_processes():
    stopped = pickle.loads(pickle.dumps(Interrupted("stopped at step 3", 15)))
    assert (str(stopped), stopped.exit_code) == ("stopped at step 3", 143)

    def portable(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return jobs._portable(caught, "job 3")

    class Local(Exception):
        """Defined where no other process can find it."""

    for error, kind in ((KeyError("x"), KeyError), (Local("odd"), RuntimeError)):
        sent = pickle.loads(pickle.dumps(portable(error)))
        assert type(sent) is kind and "in job 3" in sent.__notes__[0]
        assert "Traceback" in sent.__notes__[0]
    assert not hasattr(portable(UserError("mine")), "__notes__")
