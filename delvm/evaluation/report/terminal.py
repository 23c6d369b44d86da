"""Results as short tables for a terminal; intervals and further metrics are in the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Tasks = Mapping[str, Mapping[str, Any]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def students_table(tasks: Tasks) -> list[str]:
    """The primary metric of each task: best baseline, students with the gap they close, ceiling."""
    return aligned(list(_students_rows(tasks)))


def _students_rows(tasks: Tasks) -> Iterator[list[str]]:
    names = list(dict.fromkeys(name for each in tasks.values() for name in each["students"]))
    yield ["task", "metric", "best baseline", *names, "ceiling"]
    for task, each in tasks.items():
        metric, best = each["primary_metric"], each["best_baseline"]
        cells = [_number(each["baselines"][best]["round_trip"][metric])]
        for name in names:
            student = each["students"][name]
            closed = student["gap_closed"]["mean"]
            of_gap = "" if closed is None else f" ({closed:.0%} of the gap)"
            cells.append(f"{_number(student['scores'][metric])}{of_gap}")
        yield [task, metric, *cells, _number(each["ceiling"][metric])]


def video_table(tasks: Tasks) -> list[str]:
    """PSNR of the first and the last frame ahead, by every method."""
    rows = [["task", "method", "psnr, frame 1", "psnr, last frame"]]
    for task, each in tasks.items():
        (baseline,) = each["baselines"]
        methods = {
            f"{baseline} (round trip)": each["baselines"][baseline]["round_trip"],
            **{name: student["scores"] for name, student in each["students"].items()},
            "ceiling": each["ceiling"],
        }
        for name, scores in methods.items():
            rows.append([task, name, *(_number(scores["psnr"][frame]) for frame in (0, -1))])
    return aligned(rows)


def tokenizer_table(tasks: Tasks, total: Mapping[str, Any]) -> list[str]:
    """Means of each side of each task and over all images, and the codes that are used."""
    metrics = [name for name in total if name != "codes"]
    rows: list[list[str]] = [["images", *metrics, "codes used"]]
    sides = {
        f"{task} {side}": found for task, each in tasks.items() for side, found in each.items()
    }
    for name, found in {**sides, "all": total}.items():
        cells = [_number(found[metric]) for metric in metrics]
        rows.append([name, *cells, f"{found['codes']['num_used']:,}"])
    return aligned(rows)


def _number(interval: Mapping[str, Any]) -> str:
    return "-" if interval["mean"] is None else f"{interval['mean']:.4g}"
