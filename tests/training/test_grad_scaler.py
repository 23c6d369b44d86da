"""The loss scale of float16 training."""

from types import SimpleNamespace

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from delvm.training.grad_scaler import HysteresisGradScaler, LossScale


def run(scaler, overflows, weight=None):
    """The scale after each of some steps, of which some overflow."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scales = torch.optim.SGD([weight], lr=0.1), []
    for overflow in overflows:
        optimizer.zero_grad()
        scaler.scale(weight.sum() * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def test_the_default_is_torchs_own_scale():
    overflows = [0, 1, 0, 0, 0, 1, 1, 0]
    settings = {"device": "cpu", "init_scale": 16.0, "growth_interval": 2}
    assert run(HysteresisGradScaler(**settings), overflows) == run(
        GradScaler(**settings), overflows
    )


def test_hysteresis_tolerates_overflows_until_the_scale_grows():
    scaler = HysteresisGradScaler("cpu", init_scale=16.0, growth_interval=2, hysteresis=2)
    # The first is tolerated, the second and third are not; growth starts the count again.
    assert run(scaler, [1, 0, 1, 1, 0, 0, 1]) == [16, 16, 8, 4, 4, 8, 8]


def test_a_resumed_scale_continues_and_reads_torchs_state():
    scaler = HysteresisGradScaler("cpu", init_scale=16.0, hysteresis=2)
    run(scaler, [1])
    resumed = HysteresisGradScaler("cpu", hysteresis=2)
    resumed.load_state_dict(scaler.state_dict())
    assert run(resumed, [1]) == run(scaler, [1]) == [8]
    former = GradScaler("cpu", init_scale=4.0)
    run(former, [0])
    resumed.load_state_dict(former.state_dict())
    assert resumed.get_scale() == 4 and resumed.num_overflows == 0


def test_the_callback_replaces_the_scaler_of_16_mixed_alone():
    callback = LossScale(init_scale=8.0, growth_interval=1000, hysteresis=2)
    precision = SimpleNamespace(scaler=GradScaler("cpu"), device="cpu")
    callback.setup(SimpleNamespace(precision_plugin=precision), None, "fit")
    assert precision.scaler.hysteresis == 2
    assert precision.scaler.get_growth_interval() == 1000
    other = SimpleNamespace(scaler=None, device="cpu")
    callback.setup(SimpleNamespace(precision_plugin=other), None, "fit")
    assert other.scaler is None


@pytest.mark.parametrize(
    "name, value",
    [("init_scale", 0.0), ("growth_interval", 0), ("hysteresis", 0), ("backoff_factor", 1.0)],
)
def test_settings_out_of_range_are_errors(name, value):
    (error,) = LossScale(**{name: value}).validate()
    assert f"{name}={value}" in error
