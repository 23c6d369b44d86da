"""Divergences against loops over classes, and their limits."""

import math

import pytest
import torch

from delvm.training.losses import JensenShannon, KLDivergence, kl_divergence


@pytest.fixture
def pair():
    """Log-probabilities of two distributions for each of 6 tokens over 5 classes."""
    torch.manual_seed(0)
    return tuple(torch.log_softmax(2 * torch.randn(6, 5), -1) for _ in range(2))


def rows(pair):
    """The probabilities of each token, as two lists."""
    return zip(*(each.double().exp().tolist() for each in pair), strict=True)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixture(p, q, weight):
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


@pytest.mark.parametrize("skew", [0.0, 0.1, 0.9])
def test_skewed_kl_against_a_loop(pair, skew):
    actual = KLDivergence(skew)(*pair).tolist()
    for row, (p, q) in enumerate(
        zip(*(each.double().exp().tolist() for each in pair), strict=True)
    ):
        assert actual[row] == pytest.approx(kl(p, mixture(p, q, skew)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.9])
def test_jensen_shannon_against_a_loop(pair, mix):
    actual = JensenShannon(mix)(*pair).tolist()
    for row, (p, q) in enumerate(
        zip(*(each.double().exp().tolist() for each in pair), strict=True)
    ):
        m = mixture(p, q, mix)
        expected = mix * kl(p, m) + (1 - mix) * kl(q, m)
        assert actual[row] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_kl_without_a_skew_has_the_bits_of_the_plain_formula(pair):
    p, q = pair
    assert torch.equal(KLDivergence()(p, q), (p.exp() * (p - q)).sum(-1))
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    a, b = (torch.log_softmax(each / 2, -1) for each in (teacher, student))
    assert torch.equal(kl_divergence(student, teacher, 2.0), 4.0 * (a.exp() * (a - b)).sum(-1))


def test_skew_bounds_the_divergence_of_distributions_that_do_not_overlap():
    p, q = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
    assert KLDivergence()(p, q).item() == pytest.approx(1e4)
    assert KLDivergence(0.1)(p, q).item() == pytest.approx(-math.log(0.1), rel=1e-6)


def test_jensen_shannon_is_symmetric_and_at_most_log_2(pair):
    p, q = pair
    assert torch.allclose(JensenShannon()(p, q), JensenShannon()(q, p), atol=1e-7)
    assert torch.allclose(JensenShannon(0.2)(p, q), JensenShannon(0.8)(q, p), atol=1e-7)
    p, q = torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]])
    assert JensenShannon()(p, q).item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(("mix", "scale", "reverse"), [(1e-4, 1e-4, False), (0.9999, 1e-4, True)])
def test_jensen_shannon_tends_to_kl_at_both_ends(pair, mix, scale, reverse):
    """JSD / mix -> KL(p || q) for a small mix (GKD, section 2)."""
    p, q = (each.double() for each in pair)
    expected = KLDivergence()(q, p) if reverse else KLDivergence()(p, q)
    assert torch.allclose(JensenShannon(mix)(p, q) / scale, expected, rtol=1e-2)


@pytest.mark.parametrize("divergence", [KLDivergence(), KLDivergence(0.3), JensenShannon(0.3)])
def test_equal_distributions_have_no_divergence_and_no_gradient(pair, divergence):
    logits = pair[0].clone().requires_grad_()
    value = divergence(pair[0], torch.log_softmax(logits, -1)).sum()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (KLDivergence(1.0), "skew=1.0 is not in [0, 1): set it to 0.1, or to 0 for KL"),
        (KLDivergence(float("nan")), "skew=nan is not in"),
        (JensenShannon(0.0), "mix=0.0 is not between 0 and 1: set it to 0.5, or divergence=kl"),
    ],
)
def test_settings_out_of_range_are_named(part, words):
    (error,) = part.validate()
    assert error.startswith(words)
    assert not KLDivergence().validate() and not JensenShannon().validate()
