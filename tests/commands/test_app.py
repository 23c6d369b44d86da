"""Runs and sweeps: which output a job gets, what is left behind, where a sweep stops."""

import os
import sys
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from delvm import cli
from delvm.commands import app, evaluate, generate, prepare, train
from delvm.errors import UserError


@pytest.fixture
def record(monkeypatch):
    """Replace a verb's work by a list of the configs that it was called with; all are valid."""

    def replace(verb, work="run", fail_at=None):
        seen = []

        def recorded(cfg):
            seen.append(cfg)
            if len(seen) == fail_at:
                raise UserError("this one cannot be done")

        monkeypatch.setattr(verb, work, recorded)
        monkeypatch.setattr(app, "check", lambda verb, cfg: None)
        return seen

    return replace


@pytest.mark.parametrize("verb", ["prepare", "encode", "evaluate"])
def test_a_run_leaves_nothing_of_hydra(delvm, record, tmp_path, verb):
    seen = record(import_module(f"delvm.commands.{verb}"))
    assert delvm(verb, "output_dir=a/b") == (0, "", "")
    assert seen[0].output_dir == "a/b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_config_is_saved_for_the_table_of_runs(delvm, monkeypatch, record, tmp_path):
    seen = record(train, "train")
    monkeypatch.setattr(
        train, "train", lambda cfg: seen.append(cfg) or app.save_config(cfg, "runs/a")
    )
    assert delvm("train", "seed=3", "data.batch_size=4") == (0, "", "")
    assert OmegaConf.load("runs/a/.hydra/config.yaml").seed == 3
    assert OmegaConf.load("runs/a/.hydra/overrides.yaml") == ["seed=3", "data.batch_size=4"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {tmp_path / "runs/a/.hydra"}  # and no log files


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_own_output(delvm, record):
    seen = record(evaluate)
    shared = ("output_dir=runs", "num_queries=3")
    code, out, err = delvm("evaluate", "-m", "num_shots=1,2", "seed=1,2", *shared)
    assert (code, out) == (0, "")
    assert [(cfg.num_shots, cfg.seed) for cfg in seen] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [cfg.output_dir for cfg in seen] == [
        "runs/num_shots=1,seed=1",
        "runs/num_shots=1,seed=2",
        "runs/num_shots=2,seed=1",
        "runs/num_shots=2,seed=2",
    ]
    assert err.splitlines()[0] == "job 0: num_shots=1 seed=1 output_dir=runs num_queries=3"
    assert len(err.splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("answers", "answers/seed=1"),
        ("answers/a.png", "answers/seed=1/a.png"),
        ("a.png", "seed=1/a.png"),
    ],
)
def test_a_file_keeps_its_name_in_the_output_of_a_job(delvm, record, output, expected):
    seen = record(generate)
    assert delvm("generate", "-m", "seed=1,2", "prompt=p", "query=q", f"output={output}")[0] == 0
    assert seen[0].output == expected


@pytest.mark.slow
def test_outputs_in_a_store_stay_there(delvm, record, tmp_path):
    seen = record(prepare)
    assert delvm("prepare", "-m", "source.seed=1,2", "output_dir=s3://bucket/pairs")[0] == 0
    assert [cfg.output_dir for cfg in seen] == [
        f"s3://bucket/pairs/source.seed={seed}" for seed in (1, 2)
    ]
    assert not (tmp_path / "s3:").exists()


@pytest.mark.slow
def test_a_subdir_of_ones_own_names_the_jobs(delvm, record):
    seen = record(evaluate)
    assert delvm("evaluate", "-m", "seed=1,2", "hydra.sweep.subdir='${hydra.job.num}'")[0] == 0
    assert [cfg.output_dir for cfg in seen] == ["outputs/evaluate/0", "outputs/evaluate/1"]


@pytest.mark.slow
def test_a_job_name_fits_a_directory(delvm, record):
    seen = record(evaluate)
    assert delvm("evaluate", "-m", "tokenizer=a/b,c/d", "output_dir=runs")[0] == 0
    assert [cfg.output_dir for cfg in seen] == ["runs/tokenizer=a-b", "runs/tokenizer=c-d"]
    long = [app.job_name(f"x={'y' * 300}{number}") for number in range(2)]
    assert long[0] != long[1] and max(map(len, long)) <= 200
    assert app.job_name("") == "job"


def test_two_jobs_with_one_output_are_refused(delvm, record):
    seen = record(evaluate)
    code, out, err = delvm("evaluate", "-m", "seed=1,1", "output_dir=runs")
    assert (code, out, seen) == (2, "", [])
    assert err == "delvm: seed=1,1 names a value twice: leave one out\n"


@pytest.mark.slow
def test_a_sweep_from_a_file(delvm, record):
    seen = record(train, "train")
    assert delvm("train", "sweep=seeds")[0] == 0
    assert [cfg.seed for cfg in seen] == [0, 1, 2]


@pytest.mark.slow
def test_the_first_failing_job_stops_the_sweep(delvm, record):
    seen = record(evaluate, fail_at=2)
    code, out, err = delvm("evaluate", "-m", "seed=1,2,3", "output_dir=runs")
    assert (code, out, len(seen)) == (2, "", 2)
    assert err.splitlines()[2:] == ["delvm: job 1: this one cannot be done"]


def test_a_mistake_leaves_an_earlier_run_as_it_was(delvm, tmp_path):
    kept = tmp_path / "runs/.hydra/config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("seed: 7\n")
    assert delvm("train", "output_dir=runs", "data.path=nowhere")[0] == 2
    assert [path.name for path in kept.parent.iterdir()] == ["config.yaml"]
    assert kept.read_text() == "seed: 7\n"


def test_the_work_sees_the_command_line_as_it_was_typed(delvm, monkeypatch):
    """Lightning starts the other processes of a run by it; Hydra's own switch is off in them."""
    seen = []
    monkeypatch.setattr(app, "check", lambda verb, cfg: None)
    monkeypatch.setattr(
        prepare, "run", lambda cfg: seen.append((sys.argv[1:], os.environ.get("HYDRA_FULL_ERROR")))
    )
    before = list(sys.argv)
    assert delvm("prepare", "--run", "source.seed=2")[0] == 0
    assert seen == [(["prepare", "--run", "source.seed=2"], None)]
    assert sys.argv == before and "HYDRA_FULL_ERROR" not in os.environ


def test_composing_leaves_hydra_as_it_was():
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    app.compose("prepare")
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.instance().cfg is before


@pytest.mark.slow
def test_run_does_what_the_command_line_does(tmp_path):
    """From Python: the same files, and an error in one line in place of an exit code."""
    small = ["source.size=16", "source.num_val=1", "source.held_out=[]", "splits=[val]"]
    assert app.run("prepare", [*small, "output_dir=from_python"]) is None
    assert cli.main(["prepare", *small, "output_dir=from_shell"]) == 0
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.tar")}
        for folder in (tmp_path / "from_python", tmp_path / "from_shell")
    ]
    assert len(contents[0]) == 4 and contents[0] == contents[1]
    with pytest.raises(UserError, match="source.size=3 is too small"):
        app.run("prepare", ["source.size=3"])
    with pytest.raises(UserError, match="unknown key 'sorce'"):
        app.run("prepare", ["sorce=shapes"])
    with pytest.raises(UserError, match="unknown verb 'trian': did you mean 'train'"):
        app.run("trian")
    with pytest.raises(UserError, match="unknown verb 'trian': did you mean 'train'"):
        app.compose("trian")


@pytest.mark.slow
def test_run_saves_its_overrides_and_leaves_hydra_as_it_was(record, monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    record(train, "train")

    def trained(cfg):
        app.save_config(cfg, "runs/a")
        return 0.5

    monkeypatch.setattr(train, "train", trained)
    assert app.run("train", ["seed=3"]) == 0.5
    assert OmegaConf.load("runs/a/.hydra/overrides.yaml") == ["seed=3"]
    assert OmegaConf.load("runs/a/.hydra/config.yaml").seed == 3
    assert HydraConfig.instance().cfg is before


def test_overrides_are_a_list_without_flags():
    with pytest.raises(UserError, match=r"overrides are one text: give a list, \['student=tiny'\]"):
        app.compose("train", "student=tiny")
    with pytest.raises(UserError, match="-m is for the command line: give overrides alone"):
        app.run("train", ["seed=1,2", "-m"])
