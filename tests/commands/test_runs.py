"""`delvm runs`, from the command line."""

from pathlib import Path

import pytest

from tests.evaluation.test_run_table import write_run


def test_a_sweep_becomes_a_table(delvm, tmp_path):
    write_run(tmp_path / "runs/seed=0", "seed: 0\n")
    write_run(tmp_path / "runs/seed=1", "seed: 1\n", None)
    code, out, err = delvm("runs", "input_dir=runs", "output=tables/a.csv")
    assert code == 0
    assert out.splitlines()[0].split() == [
        *("run", "seed", "step", "best", "step", "last", "val/loss", "best", "val/loss"),
        *("best", "val/acc"),
    ]
    assert out.splitlines()[-1] == "table: tables/a.csv, 2 runs"
    assert err == "runs: seed=1: loss history not found: runs/seed=1/metrics.csv\n"
    lines = Path("tables/a.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines] == [
        ["run", "seed", "step"],
        ["seed=0", "0", "8"],
        ["seed=1", "1", ""],
    ]
    # A table is replaced by a newer one.
    write_run(tmp_path / "runs/seed=2", "seed: 2\n")
    assert delvm("runs", "input_dir=runs", "output=tables/a.csv")[0] == 0
    assert len(Path("tables/a.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_mistakes(delvm, tmp_path):
    write_run(tmp_path / "runs", "seed: 0\n")
    Path("empty").mkdir()
    Path("thesis.csv").write_text("years,of,work\n")
    for words, message in (
        ((), "missing values for input_dir, output"),
        (("input_dir=none", "output=a.csv"), "input_dir=none is not a directory"),
        (("input_dir=empty", "output=a.csv"), "no runs in empty"),
        (
            ("input_dir=runs", "output=empty"),
            "is a directory: set output=empty/runs.csv",
        ),
        (
            ("input_dir=runs", "output=thesis.csv"),
            "output=thesis.csv exists and is not a table",
        ),
    ):
        code, out, err = delvm("runs", *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert Path("thesis.csv").read_text() == "years,of,work\n" and not Path("a.csv").exists()
