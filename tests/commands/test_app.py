"""Runs and sweeps: which folder a job gets, what is left behind, where a sweep stops."""

import pytest
from omegaconf import OmegaConf

from delvm.commands import app, encode, evaluate, jobs, prepare, train
from delvm.errors import UserError


def recorded(monkeypatch, verb, fail_at=None):
    """Replace a verb's work by a list of the configs it was called with; checks pass."""
    seen = []

    def run(cfg):
        seen.append(cfg)
        if len(seen) == fail_at:
            raise UserError("this one cannot be done")

    monkeypatch.setattr(verb, "run", run)
    for module in (app, jobs):
        monkeypatch.setattr(module, "check", lambda verb, cfg: None)
    return seen


def test_a_run_has_its_folder_and_keeps_its_config(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, train)
    assert delvm("train", "output=runs/a", "seed=3") == (0, "", "")
    assert [cfg.output for cfg in seen] == ["runs/a"]
    kept = tmp_path / "runs" / "a" / ".hydra"
    assert OmegaConf.load(kept / "config.yaml").seed == 3
    assert OmegaConf.load(kept / "overrides.yaml") == ["output=runs/a", "seed=3"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {kept}  # and no log files


@pytest.mark.parametrize("verb", [prepare, encode, evaluate])
def test_other_verbs_leave_nothing_of_hydra(delvm, monkeypatch, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, verb)
    assert delvm(verb.__name__.rpartition(".")[2], "output=a/b") == (0, "", "")
    assert seen[0].output == "a/b"
    assert list(tmp_path.iterdir()) == []


def test_each_job_of_a_sweep_has_its_own_folder(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, train)
    shared = ("output=runs", "trainer.max_steps=3")
    code, out, err = delvm("train", "-m", "student=tiny,small", "seed=1,2", *shared)
    assert (code, out) == (0, "")
    assert [(cfg.student.net.n_layers, cfg.seed) for cfg in seen] == [
        (4, 1),
        (4, 2),
        (6, 1),
        (6, 2),
    ]
    assert [cfg.output for cfg in seen] == [
        "runs/seed=1,student=tiny",
        "runs/seed=2,student=tiny",
        "runs/seed=1,student=small",
        "runs/seed=2,student=small",
    ]
    for cfg in seen:
        assert OmegaConf.load(f"{cfg.output}/.hydra/config.yaml").seed == cfg.seed
    assert err.splitlines()[0] == "job 0: student=tiny seed=1 output=runs trainer.max_steps=3"
    assert len(err.splitlines()) == 4


def test_each_report_of_a_sweep_has_its_own_folder(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, evaluate)
    assert delvm("evaluate", "-m", "pairs=1,2", "output=reports")[0] == 0
    assert [(cfg.pairs, cfg.output) for cfg in seen] == [
        (1, "reports/pairs=1"),
        (2, "reports/pairs=2"),
    ]


def test_a_folder_name_holds_no_slash(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, train)
    assert delvm("train", "-m", "data.path=a/b,c/d", "output=runs")[0] == 0
    assert [cfg.output for cfg in seen] == ["runs/data.path=a-b", "runs/data.path=c-d"]


def test_a_sweep_from_a_file(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, train)
    assert delvm("train", "sweep=seeds", "output=runs")[0] == 0
    assert [(cfg.seed, cfg.output) for cfg in seen] == [
        (seed, f"runs/seed={seed}") for seed in range(3)
    ]


def test_the_first_failing_job_stops_the_sweep(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, train, fail_at=2)
    code, out, err = delvm("train", "-m", "seed=1,2,3", "output=runs")
    assert (code, out, len(seen)) == (2, "", 2)
    assert err.splitlines()[2:] == ["delvm: job 1: this one cannot be done"]


def test_jobs_that_would_overwrite_each_other_are_refused(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = recorded(monkeypatch, prepare)
    code, _, err = delvm("prepare", "-m", "source.seed=1,2", "output=one")
    assert (code, len(seen)) == (2, 1)
    assert "two jobs of this sweep write to output=one" in err.splitlines()[-1]
    seen.clear()
    assert delvm("prepare", "-m", "source.seed=1,2", "output=s_${source.seed}")[0] == 0
    assert [cfg.output for cfg in seen] == ["s_1", "s_2"]


def test_a_fault_leaves_an_earlier_run_as_it_was(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "runs" / ".hydra"
    kept.mkdir(parents=True)
    (kept / "config.yaml").write_text("seed: 7\n")
    assert delvm("train", "output=runs", "data.path=nowhere")[0] == 2
    assert [path.name for path in kept.iterdir()] == ["config.yaml"]
    assert (kept / "config.yaml").read_text() == "seed: 7\n"


def test_a_run_folder_that_cannot_be_made(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recorded(monkeypatch, train)
    (tmp_path / "file").touch()
    assert delvm("train", "output=file") == (2, "", "delvm: File exists: file\n")


def test_composing_leaves_hydra_as_it_was(monkeypatch):
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    app.compose("prepare")
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
