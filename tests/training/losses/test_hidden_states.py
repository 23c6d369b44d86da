"""Matching of hidden states through a projection."""

import pytest
import torch

from delvm.training.losses import HiddenStateMatching, trained_parts

C, D = 3, 2


@pytest.fixture
def matching():
    found = HiddenStateMatching(0.5)
    found.projection = torch.nn.Linear(C, D, bias=False)
    found.projection.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    return found


def test_cosine_distance_ignores_lengths(matching):
    hidden = torch.tensor([[3.0, 0, 9], [0, 2.0, 0], [5.0, 5.0, 0]])
    teacher_hidden = torch.tensor([[7.0, 0], [0, -1.0], [1.0, 0]])
    distances = torch.tensor([0.0, 2.0, 1 - 0.5**0.5])
    for row in range(3):
        actual = matching(hidden, teacher_hidden, torch.eye(3)[row])
        assert actual.item() == pytest.approx(distances[row].item(), abs=1e-6)


def test_squared_distance_is_a_mean_over_the_teachers_width(matching):
    matching.distance = HiddenStateMatching(distance="mse").distance
    hidden, teacher_hidden = torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[1.0, 0.0]])
    assert matching(hidden, teacher_hidden, torch.tensor([2.0])).item() == 2 * (4 + 1) / 2


def test_the_projection_is_trained_and_has_the_widths_of_the_heads():
    matching = HiddenStateMatching()
    assert [*trained_parts(matching)] == []
    heads = [torch.nn.ModuleDict({"head": torch.nn.Linear(width, 7)}) for width in (C, D)]
    for head in heads:
        head.head = head["head"]
    matching.connect_networks(*heads)
    assert [*trained_parts(matching)] == [matching.projection]
    assert matching.projection.weight.shape == (D, C)


def test_the_projection_depends_on_the_seed_alone():
    """Not on random numbers before it; nor do those after it depend on it."""
    nets = [torch.nn.ModuleDict({"head": torch.nn.Linear(width, 7)}) for width in (C, D)]
    for net in nets:
        net.head = net["head"]
    found = []
    for count in (0, 3):
        torch.manual_seed(5)
        torch.rand(count)
        state, matching = torch.get_rng_state(), HiddenStateMatching()
        matching.connect_networks(*nets)
        assert torch.equal(state, torch.get_rng_state())
        found.append(matching.projection.weight)
    assert torch.equal(*found) and 0 < found[0].abs().max() <= C**-0.5


def test_a_negative_weight_is_named():
    assert HiddenStateMatching(-1.0).validate() == ["weight=-1.0 is below 0: set it to 0 or more"]
    assert not HiddenStateMatching().validate()
