import math

import pytest
import torch

from delvm.data.codebook_usage import INK, CodebookUsage, perplexity, plot_code_histogram


def test_even_use_is_as_uncertain_as_there_are_codes():
    use = CodebookUsage.of(torch.full((16,), 5))
    assert use.perplexity == pytest.approx(16) and use.entropy_bits == pytest.approx(4)
    assert (use.codes, use.tokens, use.used, use.most_share) == (16, 80, 16, 1 / 16)


def test_one_code_alone_says_nothing():
    counts = torch.zeros(8, dtype=torch.long)
    counts[3] = 7
    use = CodebookUsage.of(counts)
    assert (use.used, use.most, use.most_share) == (1, 3, 1.0)
    assert use.perplexity == pytest.approx(1) and use.entropy_bits == pytest.approx(0)


def test_entropy_by_hand():
    use = CodebookUsage.of(torch.tensor([3, 1, 0, 0]))
    by_hand = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert use.entropy_bits == pytest.approx(by_hand)
    numbers = use.as_dict(pixels_per_token=64)
    assert numbers["bits_per_pixel"] == pytest.approx(2 / 64)
    assert numbers["entropy_bits_per_pixel"] == pytest.approx(by_hand / 64)


def test_nothing_counted_is_not_a_number_of_codes():
    assert perplexity(torch.zeros(4)) == 1.0
    assert CodebookUsage.of(torch.zeros(4, dtype=torch.long)).used == 0


def test_the_histogram_is_as_high_as_codes_are_frequent():
    blue = []
    for counts in ([5, 5, 5, 5], [100, 1, 0, 0]):
        colours = plot_code_histogram(torch.tensor(counts)).getcolors(1 << 16)
        assert colours is not None
        blue += [number for number, colour in colours if colour == INK]
    assert blue[0] > blue[1] > 0
