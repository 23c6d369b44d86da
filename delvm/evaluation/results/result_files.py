"""Write results: rows as CSV, and the JSON files that end an evaluation."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from delvm.storage import atomic_path, write_json


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
