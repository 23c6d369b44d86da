"""The histogram of code frequencies."""

import torch

from delvm.viz.code_histogram import BAR, plot_code_histogram


def test_bars_are_as_high_as_codes_are_frequent():
    blue = []
    for counts in ([5, 5, 5, 5], [100, 1, 0, 0]):
        colors = plot_code_histogram(torch.tensor(counts)).getcolors(1 << 16)
        assert colors is not None
        blue += [number for number, color in colors if color == BAR]
    assert blue[0] > blue[1] > 0
