"""The learning rate schedule."""

import pytest

from delvm.training.optim import warmup_cosine


def test_warmup_cosine_rises_then_falls_to_its_floor():
    rates = [warmup_cosine(step, 100, 0.1, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[55] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
