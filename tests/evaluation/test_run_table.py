"""A table of runs: settings that differ, metrics, and incomplete runs."""

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


def write_run(
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


def test_table_has_differing_settings_and_metrics(tmp_path):
    common = "{max_steps: 7, compile: false}"
    write_run(tmp_path / "s/a", f"seed: 0\noptim: {{lr: 0.1, clip: null}}\ntrainer: {common}\n")
    write_run(
        tmp_path / "s/b",
        f"seed: 0\noptim: {{lr: 1.0e-05, clip: 1.0}}\ntrainer: {common}\noutput: x\n",
        CURVE.replace("2.5", "2.0"),
        student="small",
    )
    found = runs.collect_runs(tmp_path / "s")
    runs.write_table(found, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").open(newline="")))
    metrics = ["step", "best step", "last val/loss", "best val/loss", "last val/acc"]
    metrics += ["best val/acc", "last val/pose/loss", "best val/pose/loss"]
    assert rows == [
        ["run", "student", "optim.lr", "optim.clip", *metrics],
        ["b", "small", "1e-05", "1.0", "8", "5", "2.75", "2.0", "0.5", "0.25", "nan", "2.25"],
        ["a", "tiny", "0.1", "null", "8", "5", "2.75", "2.5", "0.5", "0.25", "nan", "2.25"],
    ]
    assert runs.is_run_table(tmp_path / "a.csv")
    assert [run.errors for run in found] == [[], []]
    first, second, _ = runs.format_table(found)
    assert first.split("  ")[0].strip() == "run" and "pose" not in first
    assert second.split() == ["b", "small", "1e-05", "1", "8", "5", "2.75", "2", "0.25"]


def test_incomplete_runs_are_rows_with_errors(tmp_path):
    write_run(tmp_path / "early", "seed: 1\n", None)
    write_run(tmp_path / "training", "seed: 2\n", "step,train/loss\n1,2\n")
    write_run(tmp_path / "diverged", "seed: 3\n", "step,val/loss\n1,nan\n")
    write_run(tmp_path / "plain", None)
    write_run(tmp_path / "zlast", "seed: 4\n")
    (tmp_path / ".hidden/none").mkdir(parents=True)
    (tmp_path / ".hidden/metrics.csv").write_text(CURVE)
    found = {run.name: run for run in runs.collect_runs(tmp_path)}
    assert list(found) == ["plain", "zlast", "diverged", "early", "training"]
    assert "loss history not found" in found["early"].errors[0]
    assert "has no validation metrics" in found["training"].errors[0]
    assert "has no config" in found["plain"].errors[0] and len(found["plain"].metrics) == 8
    assert math.isnan(found["diverged"].metrics["last val/loss"])
    assert "best val/loss" not in found["diverged"].metrics and not found["diverged"].errors
    with pytest.raises(UserError, match="no runs in .*hidden.*set input_dir=FOLDER"):
        runs.collect_runs(tmp_path / ".hidden" / "none")


def test_config_of_a_run_without_hydra_is_that_of_its_network(tmp_path):
    for name, width in (("a", 16), ("b", 32)):
        write_run(tmp_path / name, None)
        metadata = {"kind": "student", "config": {"width": width, "layers": 2}}
        if name == "a":
            (tmp_path / "a/student").mkdir()
            (tmp_path / "a/student/config.json").write_text(str(metadata).replace("'", '"'))
        else:
            (tmp_path / "b/checkpoints").mkdir()
            torch.save({"delvm": metadata}, tmp_path / "b/checkpoints/last.ckpt")
    found = runs.collect_runs(tmp_path)
    assert [run.errors for run in found] == [[], []]
    assert [row[:2] for row in runs.build_table(found)] == [
        ["run", "student.net.dim"],
        ["a", "16"],
        ["b", "32"],
    ]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a: [", "cannot be read"),
        ("- 1\n", "is not a mapping"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: &x [1, 1]\nb: [*x, *x]\n", "it has aliases"),
        ("a: &x {b: *x}\n", "it has aliases"),
        ("a: " + "[" * 5000, "cannot be read"),
        ("a: 2001-99-99\n", "cannot be read"),
    ],
)
def test_unreadable_config_is_an_error_and_runs_no_code(tmp_path, text, reason):
    write_run(tmp_path / "a", text)
    (run,) = runs.collect_runs(tmp_path)
    assert run.settings == {} and len(run.metrics) == 8
    assert len(run.errors) == 1 and reason in run.errors[0] and "\n" not in run.errors[0]


def test_interpolations_are_not_resolved(tmp_path):
    write_run(tmp_path / "a", "seed: ${oc.env:HOME}\n")
    write_run(tmp_path / "b", "seed: 1\n")
    found = runs.collect_runs(tmp_path)
    assert runs.differing_keys(found) == ["seed"]
    assert [row[1] for row in runs.build_table(found)] == ["seed", "${oc.env:HOME}", "1"]
