"""Learning curves from a file of the CSV logger."""

from pathlib import Path

import pytest

from delvm.errors import UserError
from delvm.evaluation.training_curves import downsample, read_history


def test_history_skips_blanks_and_sorts_points(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,20,2.5,\n0,10,3.5,\n0,20,,2.75\n0,30,nan,\n")
    assert read_history(path) == {"train/loss": [(10, 3.5), (20, 2.5)], "val/loss": [(20, 2.75)]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not found"),
        ("a,b\n1,2\n", "column 'step'"),
        ("step,x\n1,much\n", "'much' is not a number"),
    ],
)
def test_unreadable_history_is_an_error(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_history(path)


def test_downsample_keeps_short_curves_and_averages_long_ones() -> None:
    short = [(i, float(i)) for i in range(5)]
    assert downsample(short) == short
    long = downsample([(i, float(i)) for i in range(1000)], limit=100)
    assert len(long) == 100
    assert long[0] == (4.5, 4.5)
    assert downsample([]) == []
