"""What runs gave: rows of a study's results.csv, and statistics over seeds."""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

import delvm
from delvm.evaluation import read_metrics
from delvm.evaluation.training_curves import read_history
from delvm.storage import atomic_path
from experiments.studies.stages import Stage, out

SEEDS = (0, 1, 2)
Row = dict[str, Any]


def training_row(stage: Stage, tokens_per_sentence: int, teacher: str | None = None) -> Row:
    """Losses of the last validation of a run, its compute and its time.

    Args:
        stage: A `delvm train` of a student.
        tokens_per_sentence: T.
        teacher: Output of the stage that made its teacher, if it has one.

    Returns:
        loss, ppl (over all tokens), target_loss and target_ppl (over the tokens of target images),
        the same of each task as TASK_loss and so on, best_target_loss (the lowest of all
        validations), steps, tflops (10^12 operations of all
        training steps, with the teacher's forward passes), seconds.
    """
    run = out() / stage.output
    history = read_history(run.parent / "metrics.csv")
    row: Row = {}
    for name, points in history.items():
        if name.startswith("val/") and name.rsplit("/")[-1] in ("loss", "target_loss"):
            column = name.removeprefix("val/").replace("/", "_")
            row[column] = points[-1][1]
            row[f"{column.removesuffix('loss')}ppl"] = math.exp(points[-1][1])
    row["best_target_loss"] = min(value for _, value in history["val/target_loss"])
    steps = history["val/loss"][-1][0] + 1
    flops = delvm.load_student(run).flops_per_token(tokens_per_sentence)
    if teacher:
        flops += delvm.load_student(out() / teacher).flops_per_token(tokens_per_sentence) // 3
    last, tokens = history["train/tokens"][-1]
    tflops = tokens / (last + 1) * steps * flops / 1e12
    return row | {"steps": steps, "tflops": tflops, "seconds": stage.seconds or 0.0}


def scores(report: str) -> dict[str, Row]:
    """Student -> ``score``, the mean part of the gap between the best trivial baseline and the
    tokenizer's ceiling over the tasks that the report has, and that of each task as TASK_score.

    Args:
        report: A metrics.json, relative to OUT.
    """
    found: dict[str, Row] = {}
    results = read_metrics(out() / report)["tasks"]
    for task, result in results.items():
        for student, values in result["students"].items():
            closed = values["gap_closed"]
            found.setdefault(student, {})[f"{task}_score"] = _mean_of(closed)
    for row in found.values():
        row["score"] = statistics.mean(list(row.values()))
    return found


def _mean_of(value: Any) -> float:
    return float(value["mean"] if isinstance(value, Mapping) else value)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Of n values.
        spread: Their standard deviation; 0 of one value.
        half_width: Of the 95% interval of the mean by Student's t; infinite of one value.
    """

    mean: float
    spread: float
    half_width: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        found = list(values)
        if len(found) < 2:
            return cls(found[0], 0.0, math.inf)
        spread = statistics.stdev(found)
        quantile = float(stats.t.ppf(0.975, len(found) - 1))
        return cls(statistics.mean(found), spread, quantile * spread / math.sqrt(len(found)))

    def text(self, digits: int = 3, scale: float = 1.0) -> str:
        """``mean ± spread``."""
        return f"{self.mean * scale:.{digits}f} ± {self.spread * scale:.{digits}f}"

    def interval(self, digits: int = 0, scale: float = 1.0) -> str:
        """``mean (low to high)``, the 95% interval of the mean."""
        low, high = self.mean - self.half_width, self.mean + self.half_width
        texts = [f"{value * scale:.{digits}f}" for value in (self.mean, low, high)]
        return f"{texts[0]} ({texts[1]} to {texts[2]})"


def select(rows: Sequence[Row], **where: Any) -> list[Row]:
    """The rows whose columns have these values, in order of their seeds."""
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return sorted(found, key=lambda row: int(row["seed"]))


def values(rows: Sequence[Row], column: str, **where: Any) -> list[float]:
    """A column of the rows that `select` finds."""
    return [float(row[column]) for row in select(rows, **where)]


def gap_closed(alone: Sequence[float], student: Sequence[float], teacher: float) -> Estimate:
    """The part of the gap between students alone and their teacher that is closed.

    Args:
        alone, student: Losses, seed by seed.
        teacher: Loss of the teacher.
    """
    return Estimate.of((a - s) / (a - teacher) for a, s in zip(alone, student, strict=True))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv; numbers with 6 digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_rows(path: Path) -> list[Row]:
    """Read results.csv; all values are strings."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
