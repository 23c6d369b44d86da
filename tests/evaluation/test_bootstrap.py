"""Bootstrap intervals: against a slow loop, coverage, edge cases."""

import math

import numpy as np
import pytest

from delvm.evaluation.scores import bootstrap
from delvm.evaluation.scores.bootstrap import Interval


def slow_interval(values: list[float], resamples: int) -> tuple[float, float]:
    """The textbook loop: mean of n values sampled with replacement, repeatedly."""
    rng = np.random.default_rng(99)
    means = []
    for _ in range(resamples):
        sample = [values[rng.integers(len(values))] for _ in values]
        means.append(sum(sample) / len(sample))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_interval_matches_slow_loop() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    ours = bootstrap.mean_ci(values, seed=1, resamples=8000)
    low, high = slow_interval(values.tolist(), 4000)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.n == 40
    # both are random, so they agree to a few percent of the interval's width
    assert ours.low == pytest.approx(low, abs=0.06 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.06 * (high - low))


def test_interval_coverage() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        found = bootstrap.mean_ci(rng.normal(3.0, 1.0, 60), seed=trial, resamples=400)
        covered += found.low <= 3.0 <= found.high
    assert 176 <= covered <= 199


def test_nan_values_are_left_out() -> None:
    values = np.array([1.0, math.nan, 3.0, 5.0])
    assert bootstrap.mean_ci(values, seed=3) == bootstrap.mean_ci(np.array([1.0, 3.0, 5.0]), seed=3)
    nothing = bootstrap.mean_ci(np.array([math.nan]))
    assert nothing.n == 0
    assert math.isnan(nothing.mean)
    assert nothing.as_dict() == {"mean": None, "low": None, "high": None, "n": 0}


def test_intervals_depend_on_the_seed_and_not_on_the_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).normal(size=30)
    at_once = bootstrap.mean_ci(values, seed=7)
    assert at_once == bootstrap.mean_ci(values, seed=7) != bootstrap.mean_ci(values, seed=8)
    monkeypatch.setattr(bootstrap, "_MAX_RESAMPLED_VALUES", 30 * 37)
    in_batches = bootstrap.mean_ci(values, seed=7)
    assert (in_batches.low, in_batches.high) == pytest.approx((at_once.low, at_once.high))


def test_interval_of_a_single_query_is_its_value() -> None:
    assert bootstrap.mean_ci(np.array([2.0])) == Interval(2.0, 2.0, 2.0, 1)


def test_methods_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(0, 10, 50)
    gain = bootstrap.mean_difference_ci(values + 1.0, values)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))


def test_gap_closed() -> None:
    rng = np.random.default_rng(2)
    baseline = rng.normal(10, 1, 100)
    found = bootstrap.gap_closed_ci(baseline + 3, baseline, baseline + 4)
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    worse = bootstrap.gap_closed_ci(baseline - 2, baseline, baseline + 4)
    assert worse.mean == pytest.approx(-0.5)


def test_gap_closed_is_nan_without_a_gap() -> None:
    same = np.arange(10.0)
    assert math.isnan(bootstrap.gap_closed_ci(same + 1, same, same - 1).mean)
    noisy = np.random.default_rng(0).normal(0.05, 1.0, 40)
    noisy += 0.05 - noisy.mean()
    found = bootstrap.gap_closed_ci(same.repeat(4), same.repeat(4), same.repeat(4) + noisy)
    assert found.mean == pytest.approx(0.0)
    assert math.isnan(found.low)
    assert found.as_dict()["high"] is None


def test_exp_of_an_interval() -> None:
    found = Interval(0.0, -1.0, 1.0, 5).exp()
    assert (found.low, found.mean, found.high) == pytest.approx((1 / math.e, 1.0, math.e))
