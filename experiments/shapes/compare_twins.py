"""Compare the shipped student, query by query, with twins that were trained on without a teacher.

Run `compare_twins.py EVALUATION` after the commands of README.md; EVALUATION is the output of
`delvm evaluate`. Writes twins.csv next to this file, and prints the table of README.md.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from delvm.evaluation.results.result_files import write_rows
from delvm.evaluation.scores.bootstrap import mean_difference_ci

TWINS = Path(__file__).with_name("twins.csv")
COLUMNS = ("task", "metric", "twin", "student", "alone", "difference", "low", "high", "n")
METRICS = {"segmentation": "miou", "pose": "pck", "derain": "psnr", "deblur": "psnr"}
NAMES = {"alone": "equal steps", "alone_equal_compute": "equal compute"}


def compare(evaluation: Path) -> list[tuple[str | float, ...]]:
    """Rows of COLUMNS: means, and the mean difference with its 95% bootstrap interval."""
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with (evaluation / "results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores[row["task"], row["method"], row["metric"]].append(float(row["value"]))
    rows: list[tuple[str | float, ...]] = []
    for task, metric in METRICS.items():
        student = np.array(scores[task, "student/student", metric])
        for twin in NAMES:
            alone = np.array(scores[task, f"student/{twin}", metric])
            found = mean_difference_ci(student, alone)
            numbers = np.nanmean(student), np.nanmean(alone), found.mean, found.low, found.high
            rows.append((task, metric, twin, *(f"{number:.4f}" for number in numbers), found.n))
    return rows


def table() -> str:
    """The rows of twins.csv for README.md."""
    with TWINS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| task | metric | student | twin | student - twin (95%) |", "|---|---|---|---|---|"]
    for row in rows:
        digits = 2 if row["metric"] == "psnr" else 3
        values = {key: f"{float(row[key]):z.{digits}f}" for key in COLUMNS[3:8]}
        lines.append(
            f"| {row['task']} | {row['metric']} | {values['student']} | {values['alone']}, "
            f"{NAMES[row['twin']]} | {values['difference']} ({values['low']} to {values['high']}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    write_rows(TWINS, COLUMNS, compare(Path(sys.argv[1])))
    print(table())
