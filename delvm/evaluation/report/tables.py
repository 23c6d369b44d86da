"""Tables of a report: which number is in which cell, formatted, and which is the best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

LABELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "miou": "mIoU",
    "pck": "PCK",
    "iou": "IoU",
    "class_miou": "mIoU of classes",
    "fb_iou": "FB-IoU",
    "best_iou": "best IoU",
    "psnr_hole": "PSNR in the hole, dB",
    "psnr_y": "PSNR of Y, dB",
    "ssim_y": "SSIM of Y",
    "pck_box": "PCK@0.1 of the box",
    "pckh": "PCKh@0.5",
    "oks_ap": "AP (OKS)",
    "ods": "ODS-like F",
    "ois": "OIS-like F",
    "abs_rel": "AbsRel",
    "delta1": "δ1",
    "mean_angle": "mean angle, °",
    "within_11": "within 11.25°",
    "within_22": "within 22.5°",
    "within_30": "within 30°",
    "ab_error": "error of a, b",
    "lpips": "LPIPS",
}
LOWER_IS_BETTER = ("loss", "perplexity")
_DIGITS = {
    "psnr": 2,
    "psnr_hole": 2,
    "psnr_y": 2,
    "mean_angle": 1,
    "ab_error": 1,
    "loss": 3,
    "perplexity": 1,
}

Interval = Mapping[str, Any]  # "mean", "low", "high", "n"


@dataclass(frozen=True)
class Cell:
    """A number, the interval below it (empty if undefined), and whether it is the best."""

    mean: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: Its heading.
        cells: One per column.
        model: Index of the model, for its color; None for a row without one.
        tag: A remark behind the name.
    """

    name: str
    cells: list[Cell]
    model: int | None = None
    tag: str = ""


@dataclass(frozen=True)
class RowGroup:
    """Rows under a common title, which may be empty; ``quiet`` ones are printed in gray."""

    title: str
    rows: list[Row]
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption and column headings, the heading of the row names left out."""

    caption: str
    columns: list[str]
    groups: list[RowGroup]


def metric_label(metric: str) -> str:
    """A metric with its unit."""
    return LABELS.get(metric, metric)


def format_value(metric: str, value: float | None) -> str:
    """A value with the digits that suit its metric; a dash for None."""
    if value is None:
        return "–"
    if metric == "accuracy":
        return f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")
    digits = _DIGITS.get(metric, 3)
    rounded = round(value, digits) + 0.0  # + 0.0 turns -0 into 0
    return f"{rounded:,.{digits}f}".replace("-", "−")


def format_percent(fraction: float | None) -> str:
    """A fraction as a rounded percentage; a dash for None."""
    return "–" if fraction is None else f"{round(100 * fraction)}%".replace("-", "−")


def format_parameters(count: int) -> str:
    """A number of parameters with two or three digits."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _cell(metric: str, interval: Interval, best: bool) -> Cell:
    mean, low, high = (format_value(metric, interval[key]) for key in ("mean", "low", "high"))
    return Cell(mean, "" if interval["low"] is None else f"{low} to {high}", best)


def row_group(
    title: str,
    metrics: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, Interval]]],
    *,
    models: bool = False,
    tags: Mapping[str, str] | None = None,
    quiet: bool = False,
    lower_is_better: Sequence[str] = LOWER_IS_BETTER,
    format_as: str = "",
) -> RowGroup:
    """Rows under a title; the best of each column is marked if there are several rows.

    Args:
        metrics: The columns.
        rows: (name, metric -> interval).
        models: Whether the rows are models, in the order of their colors.
        tags: Name of a row -> remark.
        lower_is_better: Metrics whose best value is the lowest.
        format_as: The metric of all columns, where these are not metrics themselves.
    """
    best = {
        metric: _best([values[metric]["mean"] for _, values in rows], metric in lower_is_better)
        for metric in metrics
    }
    return RowGroup(
        title,
        [
            Row(
                name,
                [
                    _cell(format_as or m, values[m], len(rows) > 1 and best[m] == index)
                    for m in metrics
                ],
                model=index if models else None,
                tag=(tags or {}).get(name, ""),
            )
            for index, (name, values) in enumerate(rows)
        ],
        quiet,
    )


def _best(means: Sequence[float | None], lowest: bool) -> int | None:
    """Index of the best mean; None if all are undefined."""
    known = {index: mean for index, mean in enumerate(means) if mean is not None}
    choose = min if lowest else max
    return choose(known, key=lambda index: known[index]) if known else None


def score_table(result: Mapping[str, Any]) -> Table:
    """Ceiling, students and baselines of a task by every metric."""
    metrics, primary = result["metrics"], result["primary_metric"]
    baselines = result["baselines"].items()
    lowest = result.get("lower_is_better", ())  # not in results of earlier versions
    group = partial(row_group, metrics=metrics, lower_is_better=lowest)
    groups = [
        group("", rows=[("Ceiling", result["ceiling"])]),
        group("Models", rows=_students(result, lambda one: one["scores"]), models=True),
        group(
            "Baselines after the tokenizer’s round trip",
            rows=[(name, forms["round_trip"]) for name, forms in baselines],
            tags={result["best_baseline"]: "best"},
        ),
        group(
            "Baselines before the round trip",
            rows=[(name, forms["raw"]) for name, forms in baselines],
            quiet=True,
        ),
    ]
    columns = [
        metric_label(m) + (" ★" if m == primary else "") + (" ↓" if m in lowest else "")
        for m in metrics
    ]
    n = result["ceiling"][primary]["n"]
    errors = ", but with ↓" if lowest else ""
    return Table(
        f"Scores: mean over {n} queries, 95% interval; higher is better{errors}", columns, groups
    )


def loss_table(result: Mapping[str, Any]) -> Table:
    """Next-token loss, accuracy and perplexity of each student on sentences with ground truth."""
    columns = {"loss": "loss, nats", "accuracy": "accuracy, %", "perplexity": "perplexity"}
    groups = []
    for span, title in (("all", "All tokens of the sentence"), ("answer", "Tokens of the answer")):
        rows = _students(result, lambda one, span=span: one["loss"][span])  # type: ignore[misc]
        groups.append(row_group(title, list(columns), rows, models=True))
    return Table("Next token, teacher-forced", list(columns.values()), groups)


def draws_table(result: Mapping[str, Any]) -> Table:
    """How much the scores of each student depend on which prompts were sampled."""
    metrics, students = result["metrics"], result["students"]
    rows = []
    for index, (name, student) in enumerate(students.items()):
        cells = []
        for metric in metrics:
            spread = student["draws"][metric]
            std = "" if spread["std"] is None else f"± {format_value(metric, spread['std'])}"
            cells.append(Cell(format_value(metric, spread["mean"]), std))
        rows.append(Row(name, cells, model=index))
    first = next(iter(students.values()))["draws"][result["primary_metric"]]
    count = len(first["means"] or ())
    caption = f"Mean and standard deviation over {count} draws of prompts"
    return Table(caption, [metric_label(metric) for metric in metrics], [RowGroup("", rows)])


def _students(
    result: Mapping[str, Any], select: Callable[[Any], Mapping[str, Interval]]
) -> list[tuple[str, Mapping[str, Interval]]]:
    return [(name, select(one)) for name, one in result["students"].items()]
