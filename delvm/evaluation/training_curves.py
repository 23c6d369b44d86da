"""Loss curves from the metrics.csv of a training run."""

import csv
import math
from pathlib import Path

from delvm.errors import UserError

# What runs are compared by: the lower, the better.
FIGURE = "val/loss"

# name of a column -> its points (step, value), by step
History = dict[str, list[tuple[int, float]]]


def read_history(path: Path, finite: bool = True) -> History:
    """Read what Lightning's CSVLogger wrote: a column a metric, blank where it was not logged.

    Args:
        path: a metrics.csv.
        finite: whether points that are no number are left out.

    Raises:
        UserError: The file is missing, has no column "step", or holds no numbers.
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
    for number, row in enumerate(rows, start=2):
        for name, value in row.items():
            if name in (None, "step", "epoch") or not value or not row["step"]:
                continue
            try:
                point = (int(float(row["step"])), float(value))
            except ValueError:
                raise UserError(
                    f"loss history {path}, line {number}: {value!r} is no number"
                ) from None
            if math.isfinite(point[1]) or not finite:
                history.setdefault(name, []).append(point)
    return {name: sorted(points) for name, points in history.items()}


def thinned(points: list[tuple[int, float]], limit: int = 160) -> list[tuple[float, float]]:
    """At most `limit` points: means over runs of neighbours, so that a long curve stays light."""
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
