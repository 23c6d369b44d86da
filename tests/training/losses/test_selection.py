"""Which tokens a selection keeps."""

import math

import pytest
import torch

from delvm.training.losses import SelectBy, TokenSelection
from delvm.training.losses.selection import threshold_of

# Log-probabilities over 4 tokens: sure, half sure, not sure at all; the student is uniform.
TEACHER = torch.tensor(
    [[0.997, 0.001, 0.001, 0.001], [0.5, 0.5 - 2e-6, 1e-6, 1e-6], [0.25] * 4]
).log()
STUDENT = torch.full((3, 4), 0.25).log()


def test_weights_by_confidence_are_the_largest_probabilities():
    weights = TokenSelection("confidence")(TEACHER, STUDENT)
    assert torch.allclose(weights, torch.tensor([0.997, 0.5, 0.25]))


def test_weights_by_entropy_are_one_minus_its_fraction_of_the_largest():
    weights = TokenSelection(SelectBy.entropy)(TEACHER, STUDENT).tolist()
    assert weights[1:] == pytest.approx([0.5, 0.0], abs=1e-4)
    assert 0.98 < weights[0] < 1


@pytest.mark.parametrize(
    ("by", "threshold", "kept"),
    [
        ("confidence", 0.6, [1, 0, 0]),
        ("confidence", 0.4, [1, 1, 0]),
        ("entropy", 0.1, [1, 0, 0]),  # at most 0.1 nats
        ("entropy", math.log(2) + 0.01, [1, 1, 0]),
        ("gap", 1.0, [1, 0, 0]),  # log 4 - entropy, at least 1 nat
        ("gap", math.log(2) - 0.01, [1, 1, 0]),
    ],
)
def test_tokens_beyond_a_threshold_are_kept(by, threshold, kept):
    assert TokenSelection(by, threshold)(TEACHER, STUDENT).tolist() == kept


@pytest.mark.parametrize(("fraction", "kept"), [(0.01, 1), (0.5, 5), (0.75, 8), (1.0, 10)])
def test_a_fraction_of_the_tokens_with_a_weight_is_kept(fraction, kept):
    torch.manual_seed(0)
    scores, weights = torch.randn(20), (torch.arange(20) % 2).float()
    chosen = (scores >= threshold_of(scores, weights, fraction)) & (weights > 0)
    assert chosen.sum() == kept
    assert scores[chosen].min() > scores[(weights > 0) & ~chosen].max() if kept < 10 else True


def test_threshold_of_no_tokens_is_finite_or_below_all():
    assert threshold_of(torch.zeros(3), torch.zeros(3), 0.5) == -math.inf


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 1.0, "fraction": 0.5}, "threshold=1.0 and fraction=0.5 are two ways"),
        ({"threshold": -1.0}, "threshold=-1.0 is below 0: set it to 0 or more"),
        ({"by": "confidence", "threshold": 2.0}, "threshold=2.0 is a probability: set it from"),
        ({"fraction": 0.0}, "fraction=0.0 is not in (0, 1]: set it to 0.5"),
        ({"by": "gap"}, "by=gap needs a fraction of the tokens or a threshold in nats"),
    ],
)
def test_settings_of_a_selection_out_of_range_are_named(settings, words):
    (error,) = TokenSelection(**settings).validate()
    assert error.startswith(words)
    assert not TokenSelection().validate() and not TokenSelection("gap", 1.0).validate()
