"""Top-k distributions with the others as one class, against loops over tokens."""

import math

import pytest
import torch

from delvm.training.losses import chunked_linear_loss, kl_divergence
from delvm.training.losses.top_k import (
    append_tail,
    top_k_kl_divergence,
    top_k_log_probs,
    with_tail,
)

V, K, T = 11, 3, 2.0


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, V), 2 * torch.randn(6, V)


@pytest.mark.parametrize("reverse", [False, True])
def test_top_k_kl_divergence_against_a_loop(logits, reverse):
    student, teacher = logits
    actual = top_k_kl_divergence(student, *top_k_log_probs(teacher, K, T), T, reverse)
    for row in range(6):
        q, p = (torch.softmax(each[row].double() / T, 0).tolist() for each in logits)
        kept = sorted(range(V), key=lambda i: -p[i])[:K]
        chosen = [[each[i] for i in kept] for each in (p, q)]
        a, b = ([*each, 1 - sum(each)] for each in chosen)
        if reverse:
            a, b = b, a
        expected = T**2 * sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        assert actual[row].item() == pytest.approx(expected, rel=1e-5)


def test_top_k_of_all_but_one_token_is_the_complete_divergence(logits):
    student, teacher = logits
    actual = top_k_kl_divergence(student, *top_k_log_probs(teacher, V - 1, T), T)
    assert torch.allclose(actual, kl_divergence(student, teacher, T), atol=1e-6)


def test_top_k_divergence_is_at_most_the_complete_one(logits):
    student, teacher = logits
    complete = kl_divergence(student, teacher)
    divergences = [top_k_kl_divergence(student, *top_k_log_probs(teacher, k)) for k in range(1, V)]
    for fewer, more in zip(divergences, [*divergences[1:], complete], strict=True):
        assert (fewer <= more + 1e-6).all()


def test_a_stored_tail_is_what_the_kept_tokens_leave(logits):
    _, teacher = logits
    ids, log_probs = top_k_log_probs(teacher, K)
    exact = with_tail(torch.log_softmax(teacher, -1), ids)
    assert torch.allclose(append_tail(log_probs), exact, atol=1e-5)
    student = logits[0]
    assert torch.allclose(
        top_k_kl_divergence(student, ids, exact), top_k_kl_divergence(student, ids, log_probs)
    )


def test_rounded_log_probs_above_one_are_finite(logits):
    ids = torch.arange(K).expand(6, K)
    log_probs = torch.full((6, K), math.log(1 / K) + 1e-3, dtype=torch.float16)
    for reverse in (False, True):
        assert top_k_kl_divergence(logits[0], ids, log_probs, 1.0, reverse).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_of_stored_top_k_are_those_of_all_logits(compiled):
    """Value and gradients to 1e-6, with the teacher as token inputs."""
    torch.manual_seed(0)
    hidden, weight, row_weights = torch.randn(23, 16), torch.randn(V, 16), torch.rand(23)
    stored = top_k_log_probs(torch.randn(23, V), K)
    results = []
    for full in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if full:
            total = weighted(h @ w.T, row_weights, *stored)
        else:
            total = chunked_linear_loss(
                h, w, weighted, (row_weights, *stored), max_logits_bytes=300, compiled=compiled
            )
        (total / row_weights.sum()).backward()
        results.append((total.detach() / 23, h.grad, w.grad))
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(expected, actual, rtol=1e-6, atol=1e-6)


def weighted(logits, row_weights, ids, log_probs):
    return (top_k_kl_divergence(logits, ids, log_probs) * row_weights).sum()
