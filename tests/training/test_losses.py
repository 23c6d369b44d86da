"""Losses against loops, and the schedule."""

import math

import pytest
import torch

from delvm.training.losses import (
    cross_entropy,
    distillation,
    documents,
    misread,
    targets,
    token_weights,
)
from delvm.training.schedule import warmup_cosine


def test_weights_alternate_by_picture():
    # three pictures of two tokens: in in | target target | in in; the first token is not predicted
    pairs = targets(torch.tensor([2]), 6, 2)
    assert token_weights(pairs, 0.25, None).tolist() == [[0.25, 1.0, 1.0, 0.25, 0.25]]


def test_every_picture_of_a_clip_is_a_target():
    clips = targets(torch.tensor([3, 2]), 6, 2)
    assert token_weights(clips, 0.25, None).tolist() == [[1.0] * 5, [0.25, 1.0, 1.0, 0.25, 0.25]]


def test_single_pictures_are_documents_whose_first_token_is_not_predicted():
    kinds = torch.tensor([1, 2])
    document = documents(kinds, 6, 2)
    assert document.tolist() == [[0, 0, 1, 1, 2, 2], [0] * 6]
    weights = token_weights(targets(kinds, 6, 2), 0.25, document)
    assert weights.tolist() == [[1.0, 0.0, 1.0, 0.0, 1.0], [0.25, 1.0, 1.0, 0.25, 0.25]]


def test_cross_entropy_against_a_loop():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    weights = torch.tensor([[0.0, 1.0, 0.5, 2.0, 1.0], [1.0, 0.5, 0.0, 1.0, 3.0]])
    total = mass = 0.0
    for b in range(2):
        for t in range(5):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            total += weights[b, t].item() * -math.log(p[targets[b, t]].item())
            mass += weights[b, t].item()
    assert cross_entropy(logits, targets, weights).item() == pytest.approx(total / mass, rel=1e-5)


def test_z_loss_pulls_the_log_partition_to_zero():
    logits, targets = torch.full((1, 1, 4), 3.0), torch.zeros(1, 1, dtype=torch.int64)
    plain = cross_entropy(logits, targets, torch.ones(1, 1))
    with_z = cross_entropy(logits, targets, torch.ones(1, 1), z_loss=0.1)
    wanted = 0.1 * (3 + math.log(4)) ** 2
    assert (with_z - plain).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_distillation_against_a_loop(inverse):
    torch.manual_seed(0)
    student, teacher, weights = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.ones(2, 3)
    t, total = 2.0, 0.0
    for b in range(2):
        for i in range(3):
            p = torch.softmax((student if inverse else teacher)[b, i] / t, 0)
            q = torch.softmax((teacher if inverse else student)[b, i] / t, 0)
            total += t**2 * sum(a.item() * math.log(a / c) for a, c in zip(p, q, strict=True))
    got = distillation(student, teacher, weights, t, inverse).item()
    assert got == pytest.approx(total / 6, rel=1e-4)


def test_distillation_is_zero_between_equals():
    logits = torch.randn(2, 3, 5)
    assert distillation(logits, logits, torch.ones(2, 3), 1.0, False).item() == pytest.approx(0)


def test_schedule():
    rates = [warmup_cosine(step, 100, 0.1, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[55] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_misread_touches_targets_alone_and_leaves_the_rest():
    torch.manual_seed(0)
    ids = torch.zeros(400, 4 * 8 - 1, dtype=torch.int64)
    is_target = torch.arange(31) // 8 % 2 == 1
    every = is_target.expand(400, -1)
    read = misread(ids, every, 8, 1.0, 1000)
    swapped = read != ids
    assert not swapped[:, ~is_target].any()
    assert swapped[:, is_target].float().mean().item() == pytest.approx(0.5, abs=0.03)
    # rates differ from picture to picture: their spread is that of a uniform share
    assert swapped[:, 8:16].float().mean(1).std() > 0.25
    assert read.max() < 1000 and not ids.any()
    assert misread(ids, every, 8, 0.2, 1000)[:, is_target].ne(0).float().mean() < 0.12
