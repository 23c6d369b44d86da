"""Bootstrap intervals against a slow loop, and at their edges."""

import math

import numpy as np
import pytest

from delvm.evaluation import bootstrap
from delvm.evaluation.bootstrap import Interval


def slow_interval(values: list[float], resamples: int) -> tuple[float, float]:
    """The textbook's loop: draw n values with replacement, take their mean, again and again."""
    rng = np.random.default_rng(99)
    means = []
    for _ in range(resamples):
        drawn = [values[rng.integers(len(values))] for _ in values]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_interval_agrees_with_the_slow_loop() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    ours = bootstrap.mean(values, seed=1, resamples=8000)
    low, high = slow_interval(values.tolist(), 4000)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.n == 40
    # both sides are drawn, so they agree to a few percent of the interval's width
    assert ours.low == pytest.approx(low, abs=0.06 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.06 * (high - low))


def test_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        found = bootstrap.mean(rng.normal(3.0, 1.0, 60), seed=trial, resamples=400)
        held += found.low <= 3.0 <= found.high
    assert 176 <= held <= 199


def test_missing_values_are_left_out() -> None:
    values = np.array([1.0, math.nan, 3.0, 5.0])
    assert bootstrap.mean(values, seed=3) == bootstrap.mean(np.array([1.0, 3.0, 5.0]), seed=3)
    nothing = bootstrap.mean(np.array([math.nan]))
    assert nothing.n == 0
    assert math.isnan(nothing.mean)
    assert nothing.as_dict() == {"mean": None, "low": None, "high": None, "n": 0}


def test_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    whole = bootstrap.resampled_means(values, seed=7)
    assert not np.array_equal(whole, bootstrap.resampled_means(values, seed=8))
    monkeypatch.setattr(bootstrap, "_BLOCK", 30 * 37)
    np.testing.assert_allclose(bootstrap.resampled_means(values, seed=7), whole)


def test_columns_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(0, 10, 50)
    gain = bootstrap.difference(values + 1.0, values)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))


def test_closed_share() -> None:
    rng = np.random.default_rng(2)
    baseline = rng.normal(10, 1, 100)
    found = bootstrap.closed(baseline + 3, baseline, baseline + 4)
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    worse = bootstrap.closed(baseline - 2, baseline, baseline + 4)
    assert worse.mean == pytest.approx(-0.5)


def test_closed_share_of_no_distance_is_unknown() -> None:
    same = np.arange(10.0)
    assert math.isnan(bootstrap.closed(same + 1, same, same - 1).mean)
    noisy = np.random.default_rng(0).normal(0.05, 1.0, 40)
    noisy += 0.05 - noisy.mean()
    found = bootstrap.closed(same.repeat(4), same.repeat(4), same.repeat(4) + noisy)
    assert found.mean == pytest.approx(0.0)
    assert math.isnan(found.low)
    assert found.as_dict()["high"] is None


def test_exp_of_an_interval() -> None:
    found = Interval(0.0, -1.0, 1.0, 5).exp()
    assert (found.low, found.mean, found.high) == pytest.approx((1 / math.e, 1.0, math.e))
