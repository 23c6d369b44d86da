"""Means with 95% percentile bootstrap intervals over queries (Efron 1979).

Values of several methods on the same queries are resampled together, so that the interval of a
difference or of a ratio knows that an easy query is easy for all.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_BLOCK = 4_000_000  # resampled items held at once


@dataclass(frozen=True)
class Interval:
    """A number with its uncertainty; NaN where there is nothing to say.

    Attributes:
        mean: The number itself, from all queries.
        low, high: 2.5% and 97.5% percentiles over the resamples.
        n: Queries it rests on.
    """

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which knows no NaN: None stands for it."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}

    def exp(self) -> "Interval":
        """The interval of e to the number: perplexity from a mean loss."""
        low, mean, high = (float(np.exp(value)) for value in (self.low, self.mean, self.high))
        return Interval(mean, low, high, self.n)


def resampled_means(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Column means of rows drawn anew, with replacement.

    Args:
        values: (n, m), one row a query; no NaN.
        seed: The same seed and n draw the same rows, whatever the values are.

    Returns:
        (resamples, m).
    """
    return np.concatenate([weights @ values for weights in _weights(len(values), seed, resamples)])


def _weights(n: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Blocks (r, n) of each row's share in a resample: how often it was drawn, over n."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=rows) / n


def _known(*columns: np.ndarray) -> np.ndarray:
    """The columns (n,) as rows (n, m) float64, without queries that have a NaN anywhere."""
    rows = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return rows[~np.isnan(rows).any(axis=1)]


def _interval(number: float, draws: np.ndarray, n: int) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(float(number), float(low), float(high), n)


def mean(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over queries (n,); queries whose value is NaN are left out."""
    rows = _known(values)
    if not len(rows):
        return Interval(math.nan, math.nan, math.nan, 0)
    return _interval(rows.mean(), resampled_means(rows, seed, resamples)[:, 0], len(rows))


def difference(a: np.ndarray, b: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of a - b over the queries (n,) that both have a value for."""
    return mean(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), seed, resamples)


def closed(
    answer: np.ndarray,
    baseline: np.ndarray,
    ceiling: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """How much of the way from baseline to ceiling the answers go, from the means of (n,) values.

    0 is the baseline, 1 the ceiling; below 0 is worse than the baseline. The number is NaN when
    the ceiling is not above the baseline. Its bounds are NaN when that happens in any resample,
    since a ratio over a distance that may be nothing has no interval.
    """
    rows = _known(answer, baseline, ceiling)
    if not len(rows):
        return Interval(math.nan, math.nan, math.nan, 0)
    a, b, c = rows.mean(axis=0)
    if c <= b:
        return Interval(math.nan, math.nan, math.nan, len(rows))
    draws = resampled_means(rows, seed, resamples)
    distance = draws[:, 2] - draws[:, 1]
    if (distance <= 0).any():
        return Interval(float((a - b) / (c - b)), math.nan, math.nan, len(rows))
    return _interval((a - b) / (c - b), (draws[:, 0] - draws[:, 1]) / distance, len(rows))
