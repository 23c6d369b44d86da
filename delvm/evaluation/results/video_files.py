"""Results of continued videos, and the files they are written to.

metrics.json    title, settings, models, and per task:
                    metrics, lower_is_better, num_queries, context_frames, num_frames
                    ceiling      metric -> an interval per frame ahead
                    baselines    "repeat_last" -> "raw" | "round_trip" -> metric -> intervals
                    students     name -> "scores" metric -> intervals; "gain" the same of the
                                 difference to the repeated frame after the round trip
scores.csv      the same: task, method, frame (ahead, from 1), metric, mean, low, high, n
results.json    metrics.json, the key of each clip, and where the numbers come from
results.csv     every score: task, query, key, frame, method, metric, value
report.html     plots over frames ahead, tables, and continued clips
TASK.png        continued clips: the first ones, then each student's worst, median and best
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from delvm import tasks as all_tasks
from delvm.data.image_io import to_pil
from delvm.data.types import Example
from delvm.evaluation.answers.store import ScoredRows
from delvm.evaluation.queries.query_set import decode
from delvm.evaluation.report.video_report import ContinuedClip, render_report
from delvm.evaluation.results.experiment_log import (
    ResultLogger,
    ShownAnswer,
    flat_means,
    log_evaluation,
)
from delvm.evaluation.results.result_files import write_json_files, write_rows
from delvm.evaluation.scores import bootstrap
from delvm.evaluation.scores.scoring import shown_queries
from delvm.evaluation.scores.video_scoring import LPIPS_METRIC
from delvm.models.protocols import TokenizerNet
from delvm.storage import atomic_path, write_text
from delvm.viz.image_grid import image_grid

PRIMARY = "psnr"  # by which clips are shown
BASELINE = "repeat_last"
COLUMNS = ("task", "method", "frame", "metric", "mean", "low", "high", "n")
ROW_COLUMNS = ("task", "query", "key", "frame", "method", "metric", "value")


@dataclass(frozen=True)
class EvaluatedVideo:
    """A task whose clips were continued.

    Attributes:
        results: As in metrics.json.
        examples: Clips that the report shows.
        keys: Of all clips.
        rows: Of results.csv.
    """

    results: dict[str, Any]
    examples: list[ContinuedClip]
    keys: list[str]
    rows: list[tuple[Any, ...]]


def evaluated_video(
    task: str,
    keys: list[str],
    rows: ScoredRows,
    examples: list[ContinuedClip],
    context_frames: int,
    seed: int,
) -> EvaluatedVideo:
    """What is kept of a task.

    Args:
        keys: Of the clips.
        rows: Scores (Q, M) of each method.
        seed: Of the bootstrap over clips.
    """
    metrics, of_task = list(rows.scores["ceiling"]), all_tasks.get_or_default(task)
    lower_is_better = (*of_task.lower_is_better, LPIPS_METRIC)

    def intervals(method: str, minus: str | None = None) -> dict[str, list[Any]]:
        base = rows.scores[minus] if minus else {}
        return {
            name: [
                bootstrap.mean_ci(column, seed).as_dict()
                for column in (values - base[name] if minus else values).T
            ]
            for name, values in rows.scores[method].items()
        }

    baseline = f"baseline/{BASELINE}"
    results = {
        "description": of_task.description,
        "metrics": metrics,
        "lower_is_better": [name for name in metrics if name in lower_is_better],
        "num_queries": len(keys),
        "context_frames": context_frames,
        "num_frames": rows.scores["ceiling"][PRIMARY].shape[1],
        "ceiling": intervals("ceiling"),
        "baselines": {
            BASELINE: {form: intervals(f"{baseline}/{form}") for form in ("raw", "round_trip")}
        },
        "students": {
            name: {
                "scores": intervals(f"student/{name}"),
                "gain": intervals(f"student/{name}", minus=f"{baseline}/round_trip"),
            }
            for name in rows.answers
        },
    }
    return EvaluatedVideo(results, examples, keys, list(_rows(task, keys, rows)))


def shown_clips(rows: ScoredRows) -> dict[int, str]:
    """The clips to show, by their mean PSNR over the frames: row -> why, "" for the first ones."""
    means = {method: {PRIMARY: each[PRIMARY].mean(axis=1)} for method, each in rows.scores.items()}
    return shown_queries(means, PRIMARY)


def clip_example(
    row: int,
    reason: str,
    clip: Example,
    rows: ScoredRows,
    context_frames: int,
    tokenizer: TokenizerNet,
) -> ContinuedClip:
    """A clip with every student's frames as images, and their mean PSNR."""
    num_frames = rows.scores["ceiling"][PRIMARY].shape[1]
    frames = [Image.fromarray(image) for image in clip.images[: context_frames + num_frames]]
    answers = {
        name: to_pil(decode(tokenizer, torch.from_numpy(values["ids"][row]).long()))
        for name, values in rows.answers.items()
    }
    scores = {
        name: float(np.mean(rows.scores[f"student/{name}"][PRIMARY][row])) for name in answers
    }
    return ContinuedClip(
        row + 1, reason, frames[:context_frames], frames[context_frames:], answers, scores
    )


def clip_grid(example: ContinuedClip) -> Image.Image:
    """The given and the true frames in a row, and each student's frames below the true ones."""
    given, ahead = len(example.given), len(example.truth)
    titles = [f"given {number}" for number in range(1, given + 1)]
    titles += [f"+{number}" for number in range(1, ahead + 1)]
    rows: list[list[Image.Image | None]] = [[*example.given, *example.truth]]
    rows += [[*[None] * given, *frames] for frames in example.answers.values()]
    return image_grid(rows, titles, row_titles=["ground truth", *example.answers])


def write_files(
    output_dir: Path,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    evaluated: Mapping[str, EvaluatedVideo],
) -> None:
    """Write all files, metrics.json last."""
    grids = {task: [clip_grid(clip) for clip in each.examples] for task, each in evaluated.items()}
    for task, images in grids.items():
        with atomic_path(output_dir / f"{task}.png") as tmp:
            _stack(images).save(tmp)
    clips = {
        task: list(zip(each.examples, grids[task], strict=True)) for task, each in evaluated.items()
    }
    write_text(output_dir / "report.html", render_report(metrics, clips))
    scores = (row for task, each in metrics["tasks"].items() for row in _score_rows(task, each))
    write_rows(output_dir / "scores.csv", COLUMNS, scores)
    rows = (row for each in evaluated.values() for row in each.rows)
    write_rows(output_dir / "results.csv", ROW_COLUMNS, rows)
    queries = {task: [{"key": key} for key in each.keys] for task, each in evaluated.items()}
    write_json_files(output_dir, metrics, provenance, queries)


def log_files(
    loggers: Sequence[ResultLogger],
    output_dir: Path,
    metrics: dict[str, Any],
    evaluated: Mapping[str, EvaluatedVideo],
) -> None:
    """Give loggers the scores that were written, and the shown clips."""
    answers = [
        ShownAnswer(
            task, clip.number, clip.reason, name, PRIMARY, clip.scores[name], clip_grid(own)
        )
        for task, each in evaluated.items()
        for clip in each.examples
        for name, frames in clip.answers.items()
        for own in (replace(clip, answers={name: frames}),)
    ]
    means = dict(flat_means(metrics["tasks"]))
    log_evaluation(loggers, output_dir / "scores.csv", means, answers)


def methods(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, list[Any]]]]:
    """(method, metric -> intervals) of a task, as the scores are named in files."""
    yield "ceiling", results["ceiling"]
    for name, forms in results["baselines"].items():
        for form, scores in forms.items():
            yield f"baseline/{name}/{form}", scores
    for name, student in results["students"].items():
        yield f"student/{name}", student["scores"]


def _score_rows(task: str, results: Mapping[str, Any]) -> Iterator[list[Any]]:
    gains = [
        (f"student/{name}", {f"gain_{metric}": each for metric, each in student["gain"].items()})
        for name, student in results["students"].items()
    ]
    for method, scores in (*methods(results), *gains):
        for metric, frames in scores.items():
            for number, interval in enumerate(frames, 1):
                yield [task, method, number, metric, *(interval[key] for key in COLUMNS[4:])]


def _rows(task: str, keys: Sequence[str], rows: ScoredRows) -> Iterator[tuple[Any, ...]]:
    for method, scores in rows.scores.items():
        for metric, values in scores.items():
            for row, frames in enumerate(values.tolist()):
                for number, value in enumerate(frames, 1):
                    yield task, row, keys[row], number, method, metric, f"{value:.6g}"


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below another."""
    size = max(image.width for image in images), sum(image.height for image in images)
    stacked = Image.new("RGB", size, images[0].getpixel((0, 0)))
    top = 0
    for image in images:
        stacked.paste(image, (0, top))
        top += image.height
    return stacked
