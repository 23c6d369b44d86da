"""From values per query to the numbers that are reported.

An interval is ``{"mean", "low", "high", "n"}``: a mean over n queries with the 2.5% and 97.5%
bootstrap percentiles; null stands for what cannot be said.

Of one task:
    description, trained, primary, metrics   what it is; `trained` is false for tasks held out
    queries, pool          queries asked; validation pairs that prompts were drawn from
    ceiling                metric -> interval: the truth, encoded and decoded
    baselines              name -> "raw" | "round_trip" -> metric -> interval
    best_baseline          the best after the round trip, by the primary metric
    students               name -> scores   metric -> interval
                                   gain     answer - best baseline, primary metric: interval
                                   closed   (answer - baseline) / (ceiling - baseline): interval
                                   loss     "all" | "answer" -> loss, accuracy, perplexity: interval
"""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from delvm import tasks
from delvm.evaluation import baselines, bootstrap
from delvm.evaluation.scoring import Measured
from delvm.storage import atomic_path

COLUMNS = ("task", "method", "metric", "mean", "low", "high", "n")
SPANS = ("all", "answer")


def of_task(measured: Measured, seed: int) -> dict[str, Any]:
    """The numbers of one task, as the head of this module lists them."""
    task = tasks.of(measured.task)

    def scores(method: str) -> dict[str, Any]:
        values = measured.scores[method]
        return {name: bootstrap.mean(values[name], seed).as_dict() for name in task.metrics}

    best = best_baseline(measured)
    return {
        "description": task.description,
        "trained": task.name not in tasks.HELD_OUT,
        "primary": task.primary,
        "metrics": list(task.metrics),
        "queries": len(measured.scores["ceiling"][task.primary]),
        "pool": measured.pool,
        "ceiling": scores("ceiling"),
        "baselines": {
            name: {form: scores(f"baseline/{name}/{form}") for form in ("raw", "round_trip")}
            for name in baselines.NAMES
        },
        "best_baseline": best,
        "students": {
            name: {
                "scores": scores(f"student/{name}"),
                **_against(measured, name, best, seed),
                "loss": {span: _loss(measured, name, span, seed) for span in SPANS},
            }
            for name in measured.losses
        },
    }


def best_baseline(measured: Measured) -> str:
    """The baseline that scores best after the round trip, by the task's primary metric."""
    primary = tasks.of(measured.task).primary

    def mean(name: str) -> float:
        values = measured.scores[f"baseline/{name}/round_trip"][primary]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else -math.inf

    return max(baselines.NAMES, key=mean)


def _against(measured: Measured, name: str, best: str, seed: int) -> dict[str, Any]:
    """A student between the best baseline and the ceiling."""
    primary = tasks.of(measured.task).primary
    answer, baseline, ceiling = (
        measured.scores[method][primary]
        for method in (f"student/{name}", f"baseline/{best}/round_trip", "ceiling")
    )
    return {
        "gain": bootstrap.difference(answer, baseline, seed).as_dict(),
        "closed": bootstrap.closed(answer, baseline, ceiling, seed).as_dict(),
    }


def _loss(measured: Measured, name: str, span: str, seed: int) -> dict[str, Any]:
    # Sentences of a task have equally many tokens, so the mean over sentences of their mean
    # losses is the mean over tokens.
    loss = bootstrap.mean(measured.losses[name][f"loss_{span}"], seed)
    accuracy = bootstrap.mean(measured.losses[name][f"accuracy_{span}"], seed)
    numbers = {"loss": loss, "accuracy": accuracy, "perplexity": loss.exp()}
    return {key: value.as_dict() for key, value in numbers.items()}


def standing(results: dict[str, dict[str, Any]], student: str) -> dict[str, int]:
    """On how many trained tasks a student beats the best baseline, and goes half the way or more.

    Args:
        results: task -> what `of_task` gave.

    Returns:
        trained_tasks; beat_baseline, where its mean is higher; clearly_beat, where the interval
        of the gain lies above 0; closed_half, where half or more of the distance is closed.
    """
    mine = [result["students"][student] for result in results.values() if result["trained"]]
    return {
        "trained_tasks": len(mine),
        "beat_baseline": sum((one["gain"]["mean"] or 0.0) > 0 for one in mine),
        "clearly_beat": sum((one["gain"]["low"] or 0.0) > 0 for one in mine),
        "closed_half": sum((one["closed"]["mean"] or 0.0) >= 0.5 for one in mine),
    }


def _rows(task: str, result: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(task, method, metric, interval) of everything that was measured on a task."""
    for metric, interval in result["ceiling"].items():
        yield task, "ceiling", metric, interval
    for name, forms in result["baselines"].items():
        for form, scores in forms.items():
            for metric, interval in scores.items():
                yield task, f"baseline/{name}/{form}", metric, interval
    for name, student in result["students"].items():
        for metric, interval in student["scores"].items():
            yield task, f"student/{name}", metric, interval
        for key in ("gain", "closed"):
            yield task, f"student/{name}", f"{key}_{result['primary']}", student[key]
        for span, numbers in student["loss"].items():
            for key, interval in numbers.items():
                yield task, f"student/{name}", f"{key}_{span}", interval


def write_csv(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """One row a number: COLUMNS; an empty cell is what cannot be said."""
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for task, result in results.items():
            for *names, interval in _rows(task, result):
                writer.writerow([*names, *(interval[key] for key in COLUMNS[3:])])
