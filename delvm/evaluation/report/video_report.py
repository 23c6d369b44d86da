"""The report of an evaluation of continued videos, as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from delvm.evaluation.report.plots import Curve, curve_plot
from delvm.evaluation.report.render import render
from delvm.evaluation.report.student_report import Plot
from delvm.evaluation.report.tables import Table, metric_label, row_group

NO_LPIPS = "LPIPS was not measured: it needs the weights of a VGG16, set vgg_weights=PATH."
GLOSSARY = (
    (
        "The task",
        "A student sees the tokens of the given frames of a clip and generates the next ones, each "
        "from those before it, its own included. So errors add up: +1 is the first frame ahead.",
    ),
    (
        "The ceiling and the baseline",
        "Every frame is decoded by the tokenizer, so the true frame, encoded and decoded, is the "
        "ceiling. The baseline repeats the last given frame, after the same round trip: what a "
        "student must beat, and hard to beat where little moves.",
    ),
    (
        "The metrics",
        "PSNR (in dB) and SSIM compare the frame with the true one pixel by pixel, so a sharp "
        "frame of another future scores lower than a blurred mean of all. LPIPS (Zhang et al. "
        "2018, with VGG16) is a distance of features, lower is better.",
    ),
    (
        "The intervals",
        "95% percentile bootstrap over clips, of each frame by itself. In tables, bold is the best "
        "of its group.",
    ),
)


@dataclass(frozen=True)
class ContinuedClip:
    """A clip and how students continue it.

    Attributes:
        number: Of the clip, from 1.
        reason: Why it is shown, "" for the first ones.
        given, truth: Its frames.
        answers: Student -> its frames.
        scores: Student -> their mean PSNR.
    """

    number: int
    reason: str
    given: list[Image.Image]
    truth: list[Image.Image]
    answers: dict[str, list[Image.Image]]
    scores: dict[str, float]


@dataclass(frozen=True)
class VideoSection:
    """A task's plots, tables and clips; each clip with its images as a grid."""

    task: str
    description: str
    plots: list[Plot]
    tables: list[Table]
    clips: Sequence[tuple[ContinuedClip, Image.Image]]


def render_report(
    metrics: Mapping[str, Any],
    clips: Mapping[str, Sequence[tuple[ContinuedClip, Image.Image]]],
) -> str:
    """The report as HTML.

    Args:
        metrics: The content of metrics.json.
        clips: Task -> the clips to show, each with its grid.
    """
    sections = [
        VideoSection(
            task,
            result["description"],
            [_plot(result, metric) for metric in result["metrics"]],
            [_table(result, metric) for metric in result["metrics"]],
            clips[task],
        )
        for task, result in metrics["tasks"].items()
    ]
    measured = {metric for result in metrics["tasks"].values() for metric in result["metrics"]}
    return render(
        "video_report.html.j2",
        metrics=metrics,
        sections=sections,
        remark="" if "lpips" in measured else NO_LPIPS,
        glossary=GLOSSARY,
    )


def _series(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, metric -> intervals) of what a plot compares, students first."""
    return [
        *((name, student["scores"]) for name, student in result["students"].items()),
        ("ceiling", result["ceiling"]),
        *((name, forms["round_trip"]) for name, forms in result["baselines"].items()),
    ]


def _plot(result: Mapping[str, Any], metric: str) -> Plot:
    curves = [
        Curve(name, index, [(x, each["mean"]) for x, each in enumerate(scores[metric], 1)])
        for index, (name, scores) in enumerate(_series(result))
    ]
    title = metric_label(metric)
    return Plot(
        title=title,
        unit="lower is better" if metric in result["lower_is_better"] else "higher is better",
        legend=[(curve.name, curve.model) for curve in curves],
        svg=curve_plot(curves, "frames ahead"),
        description=f"{title} over frames ahead: {', '.join(curve.name for curve in curves)}",
    )


def _table(result: Mapping[str, Any], metric: str) -> Table:
    frames = [str(number) for number in range(1, result["num_frames"] + 1)]
    lowest = frames if metric in result["lower_is_better"] else ()

    def rows(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [
            (name, dict(zip(frames, scores[metric], strict=True))) for name, scores in found.items()
        ]

    students = {name: each["scores"] for name, each in result["students"].items()}
    after = {name: forms["round_trip"] for name, forms in result["baselines"].items()}
    raw = {name: forms["raw"] for name, forms in result["baselines"].items()}
    options: dict[str, Any] = {"lower_is_better": lowest, "format_as": metric}
    groups = [
        row_group("", frames, rows({"Ceiling": result["ceiling"]}), **options),
        row_group("Models", frames, rows(students), models=True, **options),
        row_group("Baseline after the tokenizer’s round trip", frames, rows(after), **options),
        row_group("Baseline before the round trip", frames, rows(raw), quiet=True, **options),
    ]
    direction = "lower" if lowest else "higher"
    caption = f"{metric_label(metric)} of each frame ahead, mean over {result['num_queries']} clips"
    columns = [f"+{number}" for number in frames]
    return Table(f"{caption}, 95% interval; {direction} is better", columns, groups)
