"""Progress in a log file and on a terminal, and notices through the logger."""

import logging
import sys

import pytest

from delvm import progress
from delvm.progress import Progress, log, log_kept, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_log_file_gets_a_line_every_interval_and_a_last_one(capsys, clock):
    with Progress(100, "encode", "pairs") as bar:
        for _ in range(25):
            clock[0] += 1.0
            bar.update(4, note="derain")
    assert lines(capsys) == [
        "encode: 40/100 pairs,  4.00 pairs/s, 00:15 left, derain",
        "encode: 80/100 pairs,  4.00 pairs/s, 00:05 left, derain",
        "encode: 100/100 pairs in 00:25,  4.00 pairs/s, derain",
    ]


def test_skipped_work_is_done_but_not_in_the_rate(capsys, clock):
    with Progress(100, "train", "steps") as bar:
        bar.skip(50)
        clock[0] += 10.0
        bar.update(10)
    assert bar.done == 60
    first, last = lines(capsys)
    assert first == "train: 60/100 steps,  1.00 steps/s, 00:40 left"
    assert last == "train: 60/100 steps in 00:10,  1.00 steps/s"


@pytest.mark.parametrize(("total", "done"), [(0, 0), (3, 5), (3, 0)])
def test_last_line_for_empty_and_exceeded_totals(capsys, total, done):
    with Progress(total, "x", "items") as bar:
        bar.update(done)
    (line,) = lines(capsys)
    assert line.startswith(f"x: {done}/") and " items in 00:00" in line


def test_the_last_line_is_written_when_work_fails(capsys):
    with pytest.raises(KeyError), Progress(3, "x", "items") as bar:
        bar.update()
        raise KeyError
    assert len(lines(capsys)) == 1


def test_track_counts_each_item(capsys):
    assert list(track(iter("abc"), 3, "read", "letters")) == ["a", "b", "c"]
    assert lines(capsys)[-1].startswith("read: 3/3 letters in ")


def test_a_terminal_gets_a_bar_and_notices_above_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(4, "encode", "pairs") as bar:
        bar.skip(1)
        bar.update(3, note="derain")
        log("kept")
    err = capsys.readouterr().err
    assert "| 4/4 pairs [" in err and "derain]" in err
    assert "kept\n" in err and err.endswith("\n")


def test_notices_go_to_stderr_through_the_logger(capsys):
    log("one")
    log_kept("prepare", "outputs", ["train/pose", "val/pose"])
    log_kept("prepare", "outputs", [])
    assert lines(capsys) == [
        "one",
        "prepare: kept in outputs, finished with the same settings: train/pose, val/pose",
    ]


def test_the_level_of_the_logger_silences_notices_and_progress(capsys):
    logger = logging.getLogger("delvm")
    logger.setLevel(logging.WARNING)
    try:
        log("one")
        log("two", logging.WARNING)
        with Progress(1, "x", "items"):
            pass
    finally:
        logger.setLevel(logging.INFO)
    assert lines(capsys) == ["two"]
