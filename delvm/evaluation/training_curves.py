"""Learning curves from the metrics.csv of a training run."""

import csv
import math
from pathlib import Path

from delvm.errors import UserError

# The metric that runs are ranked by; lower is better.
OBJECTIVE = "val/loss"

# metric -> its points (step, value), sorted by step
History = dict[str, list[tuple[int, float]]]


def find_history(weights: str | Path) -> Path | None:
    """The metrics.csv of the run that made these weights, where they are in its directory."""
    path = Path(weights)
    # The run's directory, RUN/student, or RUN/checkpoints/last.ckpt.
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "metrics.csv").is_file() and (folder / "checkpoints").is_dir():
            return folder / "metrics.csv"
    return None


def read_history(path: str | Path, finite: bool = True) -> History:
    """Read the file of Lightning's CSVLogger: one column per metric, blank where not logged.

    Args:
        path: a metrics.csv.
        finite: leave out NaN and infinite values.

    Raises:
        UserError: The file is missing, has no column "step", or has a value that is not a number.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"loss history not found: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"loss history {path} cannot be read: {error}") from None
    if not rows or "step" not in rows[0]:
        raise UserError(f"loss history {path} has no rows with a column 'step'")
    history: History = {}
    for line, row in enumerate(rows, start=2):
        for name, value in row.items():
            if name in (None, "step", "epoch") or not value or not row["step"]:
                continue
            try:
                point = (int(float(row["step"])), float(value))
            except ValueError:
                raise UserError(
                    f"loss history {path}, line {line}: {value!r} is not a number"
                ) from None
            if math.isfinite(point[1]) or not finite:
                history.setdefault(name, []).append(point)
    return {name: sorted(points) for name, points in history.items()}


def downsample(points: list[tuple[int, float]], limit: int = 160) -> list[tuple[float, float]]:
    """Reduce a long curve to at most `limit` points, each the mean of consecutive ones."""
    size = max(1, math.ceil(len(points) / limit))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
