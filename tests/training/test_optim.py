"""The learning rate schedule, and what weight decay applies to."""

from functools import partial

import pytest
import torch
from torch import nn

from delvm.training.optim import WarmupCosine, WeightDecayOn, build_optimizer, warmup_cosine


def test_warmup_cosine_rises_then_falls_to_its_floor():
    rates = [warmup_cosine(step, 100, 0.1, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[55] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_a_schedule_of_its_own_length():
    """A run of 10 steps follows the first 10 of 40, and one of 50 stays at the floor."""
    for total in (10, 50):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        schedule = WarmupCosine(optimizer, total, 0.1, 0.2, decay_steps=40)
        for step in range(total):
            assert schedule.get_last_lr() == [warmup_cosine(step, 40, 0.1, 0.2)]
            optimizer.step()
            schedule.step()
        assert (schedule.get_last_lr() == [0.2]) == (total > 40)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)


def decayed(optimizer, net):
    """The names of the parameters that decay."""
    names = {id(p): name for name, p in net.named_parameters()}
    groups = [group for group in optimizer.param_groups if group["weight_decay"]]
    return {names[id(p)] for group in groups for p in group["params"]}


def test_weight_decay_of_matrices_or_of_all():
    net, factory = Net(), partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1)
    assert decayed(build_optimizer(factory, net), net) == {"linear.weight"}
    everything = {name for name, _ in net.named_parameters()}
    for decay in ("all", WeightDecayOn.all):
        optimizer = build_optimizer(partial(factory, decay=decay), net)
        assert decayed(optimizer, net) == everything
    no_decay = build_optimizer(partial(factory, decay="all"), net, no_decay=[net.linear.weight])
    assert decayed(no_decay, net) == everything


def test_optimizer_decay_is_a_setting_of_the_command_line():
    import delvm
    from delvm.commands.build import build

    net = Net()
    for override, count in (("optimizer.decay=matrices", 1), ("optimizer.decay=all", 4)):
        cfg = delvm.compose("train", [override])
        optimizer = build_optimizer(build(cfg.optimizer, "optimizer"), net)
        assert len(decayed(optimizer, net)) == count
