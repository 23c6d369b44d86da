"""Losses against loops, and the schedule."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from delvm.training import losses
from delvm.training.losses import (
    cross_entropy,
    distillation,
    documents,
    guided,
    misread,
    next_tokens,
    over_logits,
    targets,
    token_weights,
)
from delvm.training.optim import warmup_cosine


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
    logits, targets = torch.randn(5, 7), torch.randint(0, 7, (5,))
    found = cross_entropy(logits, targets).tolist()
    for t in range(5):
        p = logits[t].exp() / logits[t].exp().sum()
        assert found[t] == pytest.approx(-math.log(p[targets[t]].item()), rel=1e-5)


def test_z_loss_pulls_the_log_partition_to_zero():
    logits, targets = torch.full((1, 4), 3.0), torch.zeros(1, dtype=torch.int64)
    with_z = cross_entropy(logits, targets, z_loss=0.1) - cross_entropy(logits, targets)
    assert with_z.item() == pytest.approx(0.1 * (3 + math.log(4)) ** 2, rel=1e-5)


@pytest.mark.parametrize("inverse", [False, True])
def test_distillation_against_a_loop(inverse):
    torch.manual_seed(0)
    student, teacher, t = torch.randn(6, 5), torch.randn(6, 5), 2.0
    found = distillation(student, teacher, t, inverse).tolist()
    for i in range(6):
        p = torch.softmax((student if inverse else teacher)[i] / t, 0)
        q = torch.softmax((teacher if inverse else student)[i] / t, 0)
        wanted = t**2 * sum(a.item() * math.log(a / c) for a, c in zip(p, q, strict=True))
        assert found[i] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_distillation_is_zero_between_equals():
    logits = torch.randn(6, 5)
    assert distillation(logits, logits, 1.0, False).tolist() == pytest.approx([0] * 6)


def test_a_loss_of_no_rows_is_zero():
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = over_logits(hidden, weight, torch.sum)
    loss.backward()
    assert loss == 0 and weight.grad.count_nonzero() == 0 and hidden.grad.shape == (0, 4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("held", [1, 4 * 7 * 11, 10**9])
@pytest.mark.parametrize("exact", [1 << 20, 2 * 11])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_in_parts_is_the_loss_of_all_logits(held, exact, smoothing, compiled, monkeypatch):
    """Value and both gradients, to 1e-6 of float32."""
    monkeypatch.setitem(losses.LOSSES_HELD, "cpu", exact)
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16), torch.randn(11, 16)
    columns = targets, weights = torch.randint(0, 11, (23,)), torch.rand(23)
    part = partial(next_tokens, label_smoothing=smoothing, z_loss=0.01)
    found = []
    for whole in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if whole:
            each = cross_entropy(h @ w.T, targets, smoothing, 0.01)
            loss = (each * weights).sum()
        else:
            loss = over_logits(h, w, part, columns, held=held, compiled=compiled)
        (3 * loss / weights.sum()).backward()
        found.append((loss.detach(), h.grad, w.grad))
    for plain, ours in zip(*found, strict=True):
        assert torch.allclose(plain, ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_teachers_loss_in_parts_tells_what_it_is_made_of(compiled):
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16), torch.randn(11, 16)
    columns = torch.randint(0, 11, (23,)), torch.rand(23), torch.randn(23, 6)
    head = torch.randn(11, 6)
    part = partial(
        guided,
        truth=partial(next_tokens, label_smoothing=0.0, z_loss=0.0),
        gt_weight=0.3, kd_weight=0.7, temperature=2.0, inverse=False,
    )  # fmt: skip
    found = []
    for whole in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if whole:
            truth = (cross_entropy(h @ w.T, columns[0]) * columns[1]).sum()
            kd = (distillation(h @ w.T, columns[2] @ head.T, 2.0, False) * columns[1]).sum()
            sums = torch.stack((0.3 * truth + 0.7 * kd, truth, kd))
        else:
            sums = over_logits(h, w, part, columns, (head,), held=300, compiled=compiled)
        sums[0].backward()
        found.append((sums.detach(), h.grad, w.grad))
    for plain, ours in zip(*found, strict=True):
        assert torch.allclose(plain, ours, rtol=1e-5, atol=1e-5)


def test_a_loss_in_parts_under_autocast_has_float32_sums():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), (0.1 * torch.randn(50, 32)).requires_grad_()
    targets = torch.randint(0, 50, (64,))

    def part(logits, targets):
        assert logits.dtype == torch.float32
        return cross_entropy(logits, targets).sum()

    with torch.autocast("cpu", torch.bfloat16):
        loss = over_logits(hidden.requires_grad_(), weight, part, (targets,), held=1000)
    loss.backward()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=5e-3)
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    with torch.no_grad():
        assert over_logits(hidden, weight, part, (targets,)).item() == pytest.approx(
            plain.item(), rel=1e-5
        )


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
