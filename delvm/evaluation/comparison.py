"""Compare two evaluations query by query: paired differences, and images side by side.

comparison.json, comparison.csv    per task, student and metric: the mean of both, and the interval
                                   of the difference b - a over the queries that both answered
comparison.html                    the same, with the answers that differ most

Both are read from the directories that `evaluate_students` has written.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from delvm import tasks as all_tasks
from delvm.data.image_io import to_pil
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation.answers.store import Part, ScoredRows, batches, concatenate, load_part
from delvm.evaluation.queries.query_set import decode
from delvm.evaluation.report.comparison_report import ComparedAnswer, render_comparison
from delvm.evaluation.results.provenance import data_fingerprints
from delvm.evaluation.scores import bootstrap
from delvm.interop.fingerprint import fingerprint
from delvm.models.protocols import TokenizerNet
from delvm.progress import log
from delvm.storage import as_path, atomic_path, read_json, write_json, write_text

COLUMNS = ("task", "student", "metric", "a", "b", "difference", "low", "high", "n")
NUM_SHOWN = 3  # answers that gained most, and as many that lost most

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation on disk.

    Attributes:
        path: Its directory.
        results: The content of results.json.
        answers: Task -> the measurements of each draw.
    """

    path: Path
    results: dict[str, Any]
    answers: dict[str, list[ScoredRows]]

    def keys(self, task: str) -> list[str]:
        """The keys of the queries of a task."""
        return [query["key"] for query in self.results["queries"][task]]


def load_run(path: str | Path) -> EvaluatedRun:
    """Read an evaluation.

    Raises:
        UserError: It is not one, is not finished, or its answers were removed.
    """
    path = Path(path)
    file = path / "results.json"
    if not file.exists():
        raise UserError(f"{path} has no results.json: run `delvm evaluate output_dir={path}` first")
    results = read_json(file, "results")
    try:
        tasks, count, size, draws = _read_request(results)
    except (KeyError, TypeError, ValueError, AttributeError, UserError):
        raise UserError(f"{file} is not the result of an evaluation of students") from None
    answers = {}
    for task in tasks:
        answers[task] = [
            concatenate(_load(path, part) for part in batches(task, draw, count, size))
            for draw in range(draws)
        ]
    return EvaluatedRun(path, results, answers)


def _read_request(results: Mapping[str, Any]) -> tuple[list[str], int, int, int]:
    """The tasks, queries per task, batch size and draws of an evaluation.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, UserError: It is not one of students, or
            lacks what a comparison reads.
    """
    settings, provenance = results["settings"], results["provenance"]
    count, size, draws = (int(settings[k]) for k in ("num_queries", "batch_size", "num_draws"))
    names = [results["students"], provenance["tokenizer"], settings["input_dir"]]
    if [type(each) for each in names] != [dict, str, str]:
        raise TypeError
    for task, queries in results["queries"].items():
        all_tasks.get_or_default(task)  # a task's name is part of a path
        test = provenance["data"][task]["test"]
        described = {"source", "seed", "count"} <= test.keys()
        keys = [each[key] for each in queries for key in ("key", "group")]
        if not described or len(queries) != count or not all(isinstance(key, str) for key in keys):
            raise ValueError
    if min(count, size, draws) < 1:
        raise ValueError
    return list(results["queries"]), count, size, draws


def _load(path: Path, part: Part) -> ScoredRows:
    rows = load_part(path / "answers", part)
    if rows is None:
        raise UserError(
            f"{path / 'answers'} lacks answers of {part.task}: run `delvm evaluate "
            f"output_dir={path}` with its settings again"
        )
    return rows


def compare(
    paths: Sequence[str], output_dir: Path, tokenizer: TokenizerNet | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare two evaluations, and write the three files.

    Args:
        paths: The directories of both, a and b.
        output_dir: For the files.
        tokenizer: To show answers with; without it, or where an evaluation had another one, there
            are no images.
        seed: Of the bootstrap.

    Returns:
        The content of comparison.json: a, b, students, and "tasks" -> task -> student -> metric ->
        "a", "b", "difference".

    Raises:
        UserError: They are not two evaluations with queries and students in common.
    """
    if len(paths) != 2:
        raise UserError(f"compare=[{','.join(paths)}] does not name two: set compare=[DIR,DIR]")
    a, b = (load_run(path) for path in paths)
    students = _student_pairs(a, b)
    tasks = [task for task in a.answers if task in b.answers]
    if not tasks:
        raise UserError(f"{a.path} and {b.path} have no task in common")
    shared = {task: _common_queries(a, b, task) for task in tasks}
    found = {
        task: {
            name: dict(_differences(a, b, task, pair, shared[task], seed))
            for name, pair in students.items()
        }
        for task in tasks
    }
    comparison = {
        "a": str(a.path),
        "b": str(b.path),
        "students": {name: list(pair) for name, pair in students.items()},
        "settings": _changed_settings(a, b),
        "tasks": found,
    }
    shown = {
        task: [
            answer
            for pair in students.values()
            for answer in _answers(a, b, task, pair, shared[task], tokenizer)
        ]
        for task in tasks
    }
    page = render_comparison(comparison, a.results, shown)
    write_text(output_dir / "comparison.html", page)
    _write_csv(output_dir / "comparison.csv", found)
    write_json(output_dir / "comparison.json", comparison)
    return comparison


def _student_pairs(a: EvaluatedRun, b: EvaluatedRun) -> dict[str, tuple[str, str]]:
    """The students to compare: those of one name, or the only ones of both."""
    first, second = list(a.results["students"]), list(b.results["students"])
    common = [name for name in first if name in second]
    if common:
        return {name: (name, name) for name in common}
    if len(first) == len(second) == 1:
        return {f"{first[0]} and {second[0]}": (first[0], second[0])}
    raise UserError(
        f"{a.path} has the students {', '.join(first)}, {b.path} has {', '.join(second)}: evaluate "
        "one each, or give those to compare the same name"
    )


def _common_queries(a: EvaluatedRun, b: EvaluatedRun, task: str) -> npt.NDArray[np.int64]:
    """Rows of the queries in both (2, n), which must be of the same data."""
    sources = [run.results["provenance"]["data"][task]["test"] for run in (a, b)]
    if sources[0] != sources[1]:
        raise UserError(
            f"the test pairs of {task} differ: those of {a.path} are {_describe(sources[0])}, "
            f"those of {b.path} {_describe(sources[1])}"
        )
    position = {key: row for row, key in enumerate(b.keys(task))}
    pairs = [(row, position[key]) for row, key in enumerate(a.keys(task)) if key in position]
    return np.array(pairs, np.int64).reshape(-1, 2).T


def _describe(source: Mapping[str, Any]) -> str:
    return f"{source['source']}, seed {source['seed']}, {source['count']} pairs"


def _changed_settings(a: EvaluatedRun, b: EvaluatedRun) -> dict[str, list[Any]]:
    """Setting -> its values in a and b, where they differ."""
    one, other = a.results["settings"], b.results["settings"]
    keys = dict.fromkeys([*one, *other])
    return {k: [one.get(k), other.get(k)] for k in keys if one.get(k) != other.get(k)}


def _differences(
    a: EvaluatedRun,
    b: EvaluatedRun,
    task: str,
    pair: tuple[str, str],
    rows: npt.NDArray[np.int64],
    seed: int,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, "a", "b" and "difference" as intervals) of a student."""
    runs = (a.answers[task], b.answers[task])
    for table, owner in (("scores", "student/{}"), ("losses", "{}")):
        for metric in _common_metrics(runs, task, table, owner, pair):
            yield metric, _paired(_means(runs, table, owner, pair, metric, rows), seed)
    groups = np.array([query["group"] for query in a.results["queries"][task]], np.str_)[rows[0]]
    set_metrics = all_tasks.get_or_default(task).set_metrics
    for name in _common_metrics(runs, task, "counts", "student/{}", pair):
        if name not in set_metrics:
            log(f"compare: {name} of {task} is left out, since it is not a metric any more")
            continue
        of_set = set_metrics[name]
        first, second = (
            np.stack([draw.counts[f"student/{student}"][name] for draw in draws], axis=1)[own]
            for draws, student, own in zip(runs, pair, rows, strict=True)
        )
        intervals = bootstrap.set_difference_ci(of_set.combine, first, second, groups, seed)
        one, other, change = intervals
        yield name, {"a": one.as_dict(), "b": other.as_dict(), "difference": change.as_dict()}


def _common_metrics(
    runs: Sequence[list[ScoredRows]], task: str, table: str, owner: str, pair: tuple[str, str]
) -> list[str]:
    """The metrics that both evaluations have; versions of this package differ in theirs."""
    one, other = (
        list(getattr(draws[0], table).get(owner.format(name), {}))
        for draws, name in zip(runs, pair, strict=True)
    )
    if alone := sorted(set(one) ^ set(other)):
        log(
            f"compare: {', '.join(alone)} of {task} left out, which one evaluation alone has: "
            "evaluate both with this version"
        )
    return [metric for metric in one if metric in other]


def _means(
    runs: Sequence[list[ScoredRows]],
    table: str,
    owner: str,
    pair: tuple[str, str],
    metric: str,
    rows: npt.NDArray[np.int64],
) -> list[Values]:
    """The values of each query in both runs, means over draws."""
    return [
        np.mean([getattr(draw, table)[owner.format(name)][metric][own] for draw in draws], axis=0)
        for draws, name, own in zip(runs, pair, rows, strict=True)
    ]


def _paired(values: Sequence[Values], seed: int) -> dict[str, Any]:
    one, other = values
    return {
        "a": bootstrap.mean_ci(one, seed).as_dict(),
        "b": bootstrap.mean_ci(other, seed).as_dict(),
        "difference": bootstrap.mean_difference_ci(other, one, seed).as_dict(),
    }


def _answers(
    a: EvaluatedRun,
    b: EvaluatedRun,
    task: str,
    pair: tuple[str, str],
    rows: npt.NDArray[np.int64],
    tokenizer: TokenizerNet | None,
) -> Iterator[ComparedAnswer]:
    """The answers of a student that differ most, side by side."""
    metric = all_tasks.get_or_default(task).primary_metric
    runs = (a.answers[task], b.answers[task])
    one, other = _means([runs[0][:1], runs[1][:1]], "scores", "student/{}", pair, metric, rows)
    known = np.flatnonzero(~np.isnan(other - one))
    order = known[np.argsort(-(other - one)[known], kind="stable")]
    chosen = list(dict.fromkeys([*order[:NUM_SHOWN], *order[::-1][:NUM_SHOWN][::-1]]))
    images = _images(a, b, task, pair, rows[:, chosen], tokenizer) if chosen else []
    for number, (query, truth, first, second) in zip(chosen, images, strict=False):
        scores = float(one[number]), float(other[number])
        key = a.keys(task)[rows[0, number]]
        yield ComparedAnswer(key, metric, query, truth, (first, second), scores)


def _images(
    a: EvaluatedRun,
    b: EvaluatedRun,
    task: str,
    pair: tuple[str, str],
    rows: npt.NDArray[np.int64],
    tokenizer: TokenizerNet | None,
) -> list[tuple[Image.Image, ...]]:
    """(query, ground truth, both answers) of queries; none where they cannot be shown."""
    root = as_path(a.results["settings"]["input_dir"])
    own = fingerprint(tokenizer) if tokenizer is not None else ""
    if any(run.results["provenance"]["tokenizer"] != own for run in (a, b)):
        log("compare: no images, since the answers are not of this tokenizer: set tokenizer=PATH")
        return []
    assert tokenizer is not None
    try:
        if data_fingerprints(root, [task], ("test",))[task] != {
            "test": a.results["provenance"]["data"][task]["test"]
        }:
            raise UserError(f"the test pairs of {task} in {root} are others by now")
        tests = list(islice(read_examples(root, "test", task), int(rows[0].max()) + 1))
    except UserError as error:
        log(f"compare: no images: {error}")
        return []
    sides = []
    for run, name, numbers in zip((a, b), pair, rows, strict=True):
        ids = run.answers[task][0].answers[name]["ids"][numbers]
        sides.append(to_pil(decode(tokenizer, torch.from_numpy(ids).long())))
    examples = [tests[row] for row in rows[0]]
    queries = [Image.fromarray(each.input) for each in examples]
    truths = [Image.fromarray(each.target) for each in examples]
    return list(zip(queries, truths, *sides, strict=True))


def _write_csv(path: Path, found: Mapping[str, Any]) -> None:
    with atomic_path(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for task, students in found.items():
            for student, metrics in students.items():
                for metric, each in metrics.items():
                    change = each["difference"]
                    numbers = (each["a"]["mean"], each["b"]["mean"], *change.values())
                    writer.writerow([task, student, metric, *numbers])
