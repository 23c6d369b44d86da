"""Means over queries with 95% percentile bootstrap intervals (Efron 1979).

Values of several methods on the same queries are resampled together (paired), since an easy query
is easy for every method.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

RESAMPLES = 2000
SET_RESAMPLES = 500  # of metrics of a set, each of which takes a loop
CONFIDENCE = 0.95
_MAX_RESAMPLED_VALUES = 4_000_000  # in memory at once, per method

Values = npt.NDArray[np.float64]
# (samples of each method (..., n), axis) -> (...)
Statistic = Callable[..., npt.NDArray[np.float64]]


# (counts (n, k), groups (n,)) -> the metric of a set
Combine = Callable[[Values, npt.NDArray[np.str_]], float]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN where it is undefined.

    Attributes:
        mean: The estimate from all queries.
        low, high: 2.5% and 97.5% percentiles over the resamples.
        n: Number of queries.
    """

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, where None replaces NaN and infinity."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}

    def exp(self) -> "Interval":
        """The interval of the exponential: perplexity from a mean loss."""
        low, mean, high = (float(np.exp(value)) for value in (self.low, self.mean, self.high))
        return Interval(mean, low, high, self.n)


def mean_ci(values: npt.NDArray[Any], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of values (n,), without those that are NaN.

    Args:
        seed: The same seed and n resample the same queries, whatever the values are.
    """
    return _estimate(np.mean, [values], seed, resamples)


def mean_difference_ci(
    a: npt.NDArray[Any], b: npt.NDArray[Any], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of a - b, both (n,), over the queries where neither is NaN."""
    return mean_ci(a.astype(np.float64) - b.astype(np.float64), seed, resamples)


def set_metric_ci(
    combine: Combine,
    counts: Values,
    groups: npt.NDArray[np.str_],
    seed: int = 0,
    resamples: int = SET_RESAMPLES,
) -> Interval:
    """A metric of the set of all queries, of which each resample is a set of its own.

    Args:
        combine: (counts (n, k), groups (n,)) -> the metric, see `delvm.tasks.base.SetMetric`.
        counts: (Q, k) of the queries, or (Q, draws, k), of which all are in the set.
        groups: (Q,) of the queries.
    """
    return _percentiles(_resampled(combine, counts, groups, seed, resamples), len(counts))


def set_difference_ci(
    combine: Combine,
    a: Values,
    b: Values,
    groups: npt.NDArray[np.str_],
    seed: int = 0,
    resamples: int = SET_RESAMPLES,
) -> tuple[Interval, Interval, Interval]:
    """A metric of two sets of answers to the same queries, and their difference b - a (paired)."""
    one, other = (_resampled(combine, counts, groups, seed, resamples) for counts in (a, b))
    return (
        _percentiles(one, len(a)),
        _percentiles(other, len(b)),
        _percentiles(other - one, len(a)),
    )


def _resampled(
    combine: Combine,
    counts: Values,
    groups: npt.NDArray[np.str_],
    seed: int,
    resamples: int,
) -> Values:
    """The metric of all queries, then that of each resample of them."""
    n = len(counts)
    draws = counts.shape[1] if counts.ndim == 3 else 1
    if not n:
        return np.full(1, np.nan)
    rows = np.random.default_rng(seed).integers(0, n, (resamples, n))
    values = [
        combine(counts[row].reshape(n * draws, -1), np.repeat(groups[row], draws))
        for row in (np.arange(n), *rows)
    ]
    return np.array(values, np.float64)


def _percentiles(values: Values, n: int) -> Interval:
    """The interval of an estimate, the first value, from its resamples, the others."""
    if math.isnan(values[0]) or np.isnan(values[1:]).all():
        return Interval(float(values[0]), math.nan, math.nan, n)
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high), n)


def gap_closed_ci(
    answer: npt.NDArray[Any],
    baseline: npt.NDArray[Any],
    ceiling: npt.NDArray[Any],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Fraction of the gap between baseline and ceiling that the answers close.

    The normalized score (answer - baseline) / (ceiling - baseline) of the means of (n,) values: 0
    at the baseline, 1 at the ceiling, negative below the baseline. It is undefined where the
    ceiling is not above the baseline. Its bounds are undefined if this holds in any resample, since
    a ratio whose denominator may be 0 has no interval.
    """
    return _estimate(_gap_closed, [answer, baseline, ceiling], seed, resamples)


def _gap_closed(answer: Values, baseline: Values, ceiling: Values, axis: int = -1) -> Values:
    a, b, c = answer.mean(axis), baseline.mean(axis), ceiling.mean(axis)
    gap = np.where(c > b, c - b, np.nan)
    return np.asarray((a - b) / gap)


def _estimate(
    statistic: Statistic, samples: list[npt.NDArray[Any]], seed: int, resamples: int
) -> Interval:
    columns = _without_nan(samples)
    n = len(columns[0])
    estimate = float(statistic(*columns, axis=-1)) if n else math.nan
    if math.isnan(estimate):
        return Interval(math.nan, math.nan, math.nan, n)
    if n == 1 or not resamples:  # every resample is the sample itself, which scipy refuses
        return Interval(estimate, estimate, estimate, n)
    with warnings.catch_warnings():
        # An interval that is undefined in some resample is NaN, which is reported as such.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _MAX_RESAMPLED_VALUES // n),
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high), n)


def _without_nan(samples: list[npt.NDArray[Any]]) -> list[Values]:
    """The samples (n,) as float64, without queries where any of them is NaN."""
    rows = np.stack([sample.astype(np.float64) for sample in samples])
    return list(rows[:, ~np.isnan(rows).any(axis=0)])
