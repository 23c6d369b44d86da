"""Short tables of results for a terminal."""

import re
from typing import Any

from delvm.evaluation.report.terminal import aligned, students_table, video_table


def interval(mean: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": None, "high": None, "n": 3}


def student(score: float, closed: float | None) -> dict[str, Any]:
    return {"scores": {"miou": interval(score)}, "gap_closed": interval(closed)}


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["a", "bbb", "c"], ["dd", "e", ""]]) == ["a   bbb  c", "dd  e"]


def test_students_stand_between_the_best_baseline_and_the_ceiling() -> None:
    task = {
        "primary_metric": "miou",
        "best_baseline": "copy_query",
        "baselines": {"copy_query": {"round_trip": {"miou": interval(0.25)}}},
        "students": {"mine": student(0.86543, 0.9), "new": student(0.1, None)},
        "ceiling": {"miou": interval(None)},
    }
    assert [re.split(" {2,}", line) for line in students_table({"pose": task})] == [
        ["task", "metric", "best baseline", "mine", "new", "ceiling"],
        ["pose", "miou", "0.25", "0.8654 (90% of the gap)", "0.1", "-"],
    ]


def test_frames_ahead_of_every_method() -> None:
    def psnr(*values: float) -> dict[str, Any]:
        return {"psnr": [interval(value) for value in values]}

    task = {
        "baselines": {"repeat_last": {"raw": psnr(1, 1), "round_trip": psnr(20.123456, 15.5)}},
        "students": {"mine": {"scores": psnr(22, 16)}},
        "ceiling": psnr(30, 30),
    }
    assert [line.split() for line in video_table({"video": task})][1:] == [
        ["video", "repeat_last", "(round", "trip)", "20.12", "15.5"],
        ["video", "mine", "22", "16"],
        ["video", "ceiling", "30", "30"],
    ]
