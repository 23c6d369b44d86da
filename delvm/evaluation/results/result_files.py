"""How results are written, as rows of CSV and as JSON, and what a report states about them."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delvm.evaluation.results.experiment_log import ResultLogger
from delvm.storage import atomic_path, write_json


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows besides the results, and the loggers that get it too.

    Attributes:
        origins: Name of a student, or "tokenizer" -> where its weights come from.
        histories: Name of a student, or "tokenizer" -> metrics.csv of its training.
    """

    title: str
    origins: Mapping[str, str]
    loggers: Sequence[ResultLogger]
    histories: Mapping[str, Path] = field(default_factory=dict)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    with atomic_path(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_json_files(
    output_dir: Path,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    queries: Mapping[str, Any],
) -> None:
    """Write results.json and then metrics.json: a new one means that all files are new."""
    write_json(
        output_dir / "results.json", {**metrics, "provenance": provenance, "queries": queries}
    )
    write_json(output_dir / "metrics.json", metrics)
