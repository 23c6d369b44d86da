"""How often each code of a codebook occurs, as an image."""

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # image grids need no torch
    from torch import Tensor

BAR, BACKGROUND, TEXT, LABEL = (46, 94, 170), (250, 250, 248), (30, 30, 30), (110, 110, 110)
LOG_FLOOR = -6.0  # log10 of the smallest fraction shown: a millionth of the tokens


def plot_code_histogram(counts: "Tensor", size: tuple[int, int] = (640, 240)) -> Image.Image:
    """The fraction of tokens per code, most frequent first, on a log scale.

    Args:
        counts: (V,) how often each code occurred.
        size: (width, height) of the image in pixels.
    """
    import torch

    width, height = size
    top, left, bottom = 28, 44, 24
    plot = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(plot), ImageFont.load_default(size=12)
    ordered = counts.sort(descending=True).values.double()
    fraction = ordered / counts.sum().clamp_min(1)
    used, most = int((counts > 0).sum()), float(fraction[0])
    title = f"{used:,} of {len(counts):,} codes used; the most frequent is {most:.1%} of tokens"
    draw.text((left, 8), title, fill=TEXT, font=font)
    across, down = width - left - 12, height - top - bottom
    shown = torch.linspace(0, len(fraction) - 1, across).long()
    for x, value in enumerate(fraction[shown].tolist()):
        if value > 0:
            y = down * max(0.0, 1 - torch.tensor(value).log10().item() / LOG_FLOOR)
            draw.line((left + x, top + down - y, left + x, top + down), fill=BAR)
    for exponent in (0, -2, -4, -6):
        y = top + down * exponent / LOG_FLOOR
        draw.text((8, y - 7), f"1e{exponent}" if exponent else "1", fill=LABEL, font=font)
    draw.text((left, height - 18), "codes, most frequent first", fill=LABEL, font=font)
    return plot
