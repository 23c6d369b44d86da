"""Runs gathered into one table: what differs, how they did, and what is told of odd ones."""

import csv
import math
from pathlib import Path

import pytest
import torch

from delvm.errors import UserError
from delvm.evaluation import run_table as runs

CURVE = (
    "epoch,step,train/loss,val/loss,val/acc,val/pose/loss\n"
    "0,1,4.0,,,\n0,2,,3.5,0.1,3.25\n0,4,,2.5,0.25,2.25\n0,6,,2.75,0.5,nan\n0,7,1.5,,,\n"
)


def made(
    folder: Path, config: str | None, curve: str | None = CURVE, student: str = "tiny"
) -> None:
    (folder / ".hydra").mkdir(parents=True)
    if config is not None:
        (folder / ".hydra/config.yaml").write_text(config)
        choices = f"{{student: {student}, hydra/launcher: basic, sweep: {folder.name}}}"
        text = f"hydra: {{runtime: {{choices: {choices}}}}}\n"
        (folder / ".hydra/hydra.yaml").write_text(text)
    if curve is not None:
        (folder / "metrics.csv").write_text(curve)


def test_what_differs_and_how_they_did(tmp_path):
    common = "{max_steps: 7, compile: false}"
    made(tmp_path / "s/a", f"seed: 0\noptim: {{lr: 0.1, clip: null}}\ntrainer: {common}\n")
    made(
        tmp_path / "s/b",
        f"seed: 0\noptim: {{lr: 1.0e-05, clip: 1.0}}\ntrainer: {common}\noutput: x\n",
        CURVE.replace("2.5", "2.0"),
        student="small",
    )
    found = runs.gather(tmp_path / "s")
    runs.write_table(found, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").open(newline="")))
    figures = ["step", "best step", "last val/loss", "best val/loss", "last val/acc"]
    figures += ["best val/acc", "last val/pose/loss", "best val/pose/loss"]
    assert rows == [
        ["run", "student", "optim.lr", "optim.clip", *figures],
        ["b", "small", "1e-05", "1.0", "7", "4", "2.75", "2.0", "0.5", "0.25", "nan", "2.25"],
        ["a", "tiny", "0.1", "null", "7", "4", "2.75", "2.5", "0.5", "0.25", "nan", "2.25"],
    ]
    assert runs.is_table(tmp_path / "a.csv")
    assert [run.faults for run in found] == [[], []]
    first, second, _ = runs.shown(found)
    assert first.split("  ")[0].strip() == "run" and "pose" not in first
    assert second.split() == ["b", "small", "1e-05", "1", "7", "4", "2.75", "2", "0.25"]


def test_odd_runs_are_rows_and_are_told(tmp_path):
    made(tmp_path / "early", "seed: 1\n", None)
    made(tmp_path / "training", "seed: 2\n", "step,train/loss\n1,2\n")
    made(tmp_path / "diverged", "seed: 3\n", "step,val/loss\n1,nan\n")
    made(tmp_path / "plain", None)
    made(tmp_path / "zlast", "seed: 4\n")
    (tmp_path / ".hidden/none").mkdir(parents=True)
    (tmp_path / ".hidden/metrics.csv").write_text(CURVE)
    found = {run.name: run for run in runs.gather(tmp_path)}
    assert list(found) == ["plain", "zlast", "diverged", "early", "training"]
    assert "loss history not found" in found["early"].faults[0]
    assert "holds no figures of a validation" in found["training"].faults[0]
    assert "holds no config" in found["plain"].faults[0] and len(found["plain"].figures) == 8
    assert math.isnan(found["diverged"].figures["last val/loss"])
    assert "best val/loss" not in found["diverged"].figures and not found["diverged"].faults
    with pytest.raises(UserError, match="no runs in .*hidden.*set input=FOLDER"):
        runs.gather(tmp_path / ".hidden" / "none")


def test_configs_of_runs_that_hydra_did_not_start(tmp_path):
    for name, width in (("a", 16), ("b", 32)):
        made(tmp_path / name, None)
        said = {"kind": "student", "config": {"width": width, "layers": 2}}
        if name == "a":
            (tmp_path / "a/student").mkdir()
            (tmp_path / "a/student/config.json").write_text(str(said).replace("'", '"'))
        else:
            (tmp_path / "b/checkpoints").mkdir()
            torch.save({"delvm": said}, tmp_path / "b/checkpoints/last.ckpt")
    found = runs.gather(tmp_path)
    assert [run.faults for run in found] == [[], []]
    assert [row[:2] for row in runs.table(found)] == [
        ["run", "student.net.dim"],
        ["a", "16"],
        ["b", "32"],
    ]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a: [", "cannot be read"),
        ("- 1\n", "is no mapping"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: &x [1, 1]\nb: [*x, *x]\n", "it has aliases"),
        ("a: &x {b: *x}\n", "it has aliases"),
        ("a: " + "[" * 5000, "cannot be read"),
        ("a: 2001-99-99\n", "cannot be read"),
    ],
)
def test_a_spoilt_config_is_told_and_runs_nothing(tmp_path, text, reason):
    made(tmp_path / "a", text)
    (run,) = runs.gather(tmp_path)
    assert run.settings == {} and len(run.figures) == 8
    assert len(run.faults) == 1 and reason in run.faults[0] and "\n" not in run.faults[0]


def test_nothing_of_the_surroundings_gets_in(tmp_path):
    made(tmp_path / "a", "seed: ${oc.env:HOME}\n")
    made(tmp_path / "b", "seed: 1\n")
    found = runs.gather(tmp_path)
    assert runs.differing(found) == ["seed"]
    assert [row[1] for row in runs.table(found)] == ["seed", "${oc.env:HOME}", "1"]
