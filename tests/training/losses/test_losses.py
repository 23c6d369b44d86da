"""Losses against loops over tokens, and chunked losses against those of all logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from delvm.training import losses
from delvm.training.losses import (
    CrossEntropyLoss,
    DistillationLoss,
    KLDirection,
    chunked_linear_loss,
    cross_entropy,
    document_ids,
    kl_divergence,
    metric_names,
    target_mask,
    token_weights,
)


def test_token_weights_alternate_by_image():
    # three images of two tokens: in in | target target | in in; the first token is not predicted
    pairs = target_mask(torch.tensor([2]), 6, 2)
    assert token_weights(pairs, 0.25, None).tolist() == [[0.25, 1.0, 1.0, 0.25, 0.25]]


def test_target_mask_takes_every_image_of_a_clip():
    clips = target_mask(torch.tensor([3, 2]), 6, 2)
    assert token_weights(clips, 0.25, None).tolist() == [[1.0] * 5, [0.25, 1.0, 1.0, 0.25, 0.25]]


def test_document_ids_of_single_images_mask_their_first_token():
    kinds = torch.tensor([1, 2])
    document = document_ids(kinds, 6, 2)
    assert document.tolist() == [[0, 0, 1, 1, 2, 2], [0] * 6]
    weights = token_weights(target_mask(kinds, 6, 2), 0.25, document)
    assert weights.tolist() == [[1.0, 0.0, 1.0, 0.0, 1.0], [0.25, 1.0, 1.0, 0.25, 0.25]]


def test_cross_entropy_against_a_loop():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7), torch.randint(0, 7, (5,))
    actual = cross_entropy(logits, targets).tolist()
    for t in range(5):
        p = logits[t].exp() / logits[t].exp().sum()
        assert actual[t] == pytest.approx(-math.log(p[targets[t]].item()), rel=1e-5)


def test_z_loss_pulls_the_log_partition_to_zero():
    logits, targets = torch.full((1, 4), 3.0), torch.zeros(1, dtype=torch.int64)
    with_z = cross_entropy(logits, targets, z_loss=0.1) - cross_entropy(logits, targets)
    assert with_z.item() == pytest.approx(0.1 * (3 + math.log(4)) ** 2, rel=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_divergence_against_a_loop(reverse):
    torch.manual_seed(0)
    student, teacher, t = torch.randn(6, 5), torch.randn(6, 5), 2.0
    actual = kl_divergence(student, teacher, t, reverse).tolist()
    for i in range(6):
        p = torch.softmax((student if reverse else teacher)[i] / t, 0)
        q = torch.softmax((teacher if reverse else student)[i] / t, 0)
        expected = t**2 * sum(a.item() * math.log(a / c) for a, c in zip(p, q, strict=True))
        assert actual[i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_kl_divergence_of_equal_logits_is_zero():
    logits = torch.randn(6, 5)
    assert kl_divergence(logits, logits, 1.0, False).tolist() == pytest.approx([0] * 6)


@pytest.mark.parametrize("direction", ["reverse", "inverse", KLDirection.reverse])
def test_distillation_loss_takes_a_direction_by_name(direction):
    assert DistillationLoss(direction=direction).reverse
    assert not DistillationLoss(direction="forward").reverse


def test_metric_names_of_a_foreign_loss_are_the_loss_alone():
    assert metric_names(torch.sum) == ("loss",)
    assert metric_names(DistillationLoss()) == ("total_loss", "loss", "kd")


def test_chunked_loss_of_no_rows_is_zero():
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = chunked_linear_loss(hidden, weight, torch.sum)
    loss.backward()
    assert loss == 0 and weight.grad.count_nonzero() == 0 and hidden.grad.shape == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 4 * 7 * 11, 10**9])
@pytest.mark.parametrize("chunk_elements", [1 << 20, 2 * 11])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_loss_is_the_loss_of_all_logits(
    max_bytes, chunk_elements, smoothing, compiled, monkeypatch
):
    """Value and both gradients, to 1e-6 of float32."""
    monkeypatch.setitem(losses.LOSS_CHUNK_ELEMENTS, "cpu", chunk_elements)
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16), torch.randn(11, 16)
    inputs = targets, weights = torch.randint(0, 11, (23,)), torch.rand(23)
    loss_fn = CrossEntropyLoss(label_smoothing=smoothing, z_loss=0.01)
    results = []
    for full in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if full:
            loss = (cross_entropy(h @ w.T, targets, smoothing, 0.01) * weights).sum()
        else:
            loss = chunked_linear_loss(
                h, w, loss_fn, inputs, max_logits_bytes=max_bytes, compiled=compiled
            )
        (3 * loss / weights.sum()).backward()
        results.append((loss.detach(), h.grad, w.grad))
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(expected, actual, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_chunked_distillation_loss_reports_its_terms(compiled):
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16), torch.randn(11, 16)
    inputs = torch.randint(0, 11, (23,)), torch.rand(23), torch.randn(23, 6)
    head = torch.randn(11, 6)
    loss_fn = DistillationLoss(gt_weight=0.3, kd_weight=0.7, temperature=2.0)
    results = []
    for full in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if full:
            ce = (cross_entropy(h @ w.T, inputs[0]) * inputs[1]).sum()
            kd = (kl_divergence(h @ w.T, inputs[2] @ head.T, 2.0, False) * inputs[1]).sum()
            sums = torch.stack((0.3 * ce + 0.7 * kd, ce, kd))
        else:
            sums = chunked_linear_loss(
                h, w, loss_fn, inputs, (head,), max_logits_bytes=300, compiled=compiled
            )
        sums[0].backward()
        results.append((sums.detach(), h.grad, w.grad))
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(expected, actual, rtol=1e-5, atol=1e-5)


def test_chunked_loss_under_autocast_has_float32_sums():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), (0.1 * torch.randn(50, 32)).requires_grad_()
    targets = torch.randint(0, 50, (64,))

    def loss_fn(logits, targets):
        assert logits.dtype == torch.float32
        return cross_entropy(logits, targets).sum()

    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_linear_loss(
            hidden.requires_grad_(), weight, loss_fn, (targets,), max_logits_bytes=1000
        )
    loss.backward()
    full = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert loss.item() == pytest.approx(full.item(), rel=5e-3)
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    with torch.no_grad():
        assert chunked_linear_loss(hidden, weight, loss_fn, (targets,)).item() == pytest.approx(
            full.item(), rel=1e-5
        )


def test_chunked_loss_of_a_frozen_head_has_the_same_gradient_of_hidden_states():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 5), torch.randn(7, 5), torch.randint(7, (9,))

    def loss_fn(logits, targets):
        return F.cross_entropy(logits, targets, reduction="sum")

    grads = []
    for frozen in (False, True):
        rows, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        (2 * chunked_linear_loss(rows, head, loss_fn, (targets,), max_logits_bytes=60)).backward()
        grads.append(rows.grad)
        assert (head.grad is None) == frozen
    assert torch.equal(*grads)
