"""Codebook usage: counts, entropy and perplexity."""

import math

import pytest
import torch

from delvm.data.codebook_usage import CodebookUsage, perplexity


def test_uniform_usage_has_the_perplexity_of_the_codebook_size():
    usage = CodebookUsage.of(torch.full((16,), 5))
    assert usage.perplexity == pytest.approx(16) and usage.entropy_bits == pytest.approx(4)
    assert (usage.codebook_size, usage.num_tokens, usage.num_used) == (16, 80, 16)
    assert usage.most_frequent_fraction == 1 / 16


def test_a_single_code_has_no_entropy():
    counts = torch.zeros(8, dtype=torch.long)
    counts[3] = 7
    usage = CodebookUsage.of(counts)
    assert (usage.num_used, usage.most_frequent, usage.most_frequent_fraction) == (1, 3, 1.0)
    assert usage.perplexity == pytest.approx(1) and usage.entropy_bits == pytest.approx(0)


def test_entropy_by_hand():
    usage = CodebookUsage.of(torch.tensor([3, 1, 0, 0]))
    by_hand = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert usage.entropy_bits == pytest.approx(by_hand)
    values = usage.as_dict(pixels_per_token=64)
    assert values["bits_per_pixel"] == pytest.approx(2 / 64)
    assert values["entropy_bits_per_pixel"] == pytest.approx(by_hand / 64)


def test_empty_counts():
    assert perplexity(torch.zeros(4)) == 1.0
    assert CodebookUsage.of(torch.zeros(4, dtype=torch.long)).num_used == 0
