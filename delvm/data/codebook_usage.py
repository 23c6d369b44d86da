"""How a codebook is used: which codes occur, how evenly, and what that costs in bits."""

import math
from dataclasses import asdict, dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, PALE = (46, 94, 170), (250, 250, 248), (110, 110, 110)


@dataclass(frozen=True)
class CodebookUsage:
    """How tokens are spread over a codebook.

    Attributes:
        codes: in the codebook, V.
        tokens: counted.
        used: codes that occur.
        perplexity: codes that would be as uncertain if used alike: 2 to the entropy.
        entropy_bits: of the distribution of single tokens, in bits a token.
        most: the most frequent code.
        most_share: its share of the tokens, in [0, 1].
    """

    codes: int
    tokens: int
    used: int
    perplexity: float
    entropy_bits: float
    most: int
    most_share: float

    @classmethod
    def of(cls, counts: Tensor) -> "CodebookUsage":
        """From how often each code occurred, counts (V,)."""
        tokens = int(counts.sum())
        even = float(perplexity(counts))
        most = int(counts.argmax())
        return cls(
            codes=len(counts),
            tokens=tokens,
            used=int((counts > 0).sum()),
            perplexity=even,
            entropy_bits=math.log2(even),
            most=most,
            most_share=int(counts[most]) / max(1, tokens),
        )

    def as_dict(self, pixels_per_token: float) -> dict[str, float | int]:
        """For JSON, with bits a pixel: as ids of equal length, and as ideally coded single ids.

        Args:
            pixels_per_token: pixels of a picture over its tokens, H * H / N.
        """
        return asdict(self) | {
            "bits_per_pixel": math.log2(self.codes) / pixels_per_token,
            "entropy_bits_per_pixel": self.entropy_bits / pixels_per_token,
        }


def perplexity(counts: Tensor) -> Tensor:
    """Codes that would be as uncertain if used alike: exp of the entropy of counts (V,)."""
    share = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(share).sum().exp()


def plot_code_histogram(counts: Tensor, size: tuple[int, int] = (640, 240)) -> Image.Image:
    """How often each code was used, codes (V,) from the most to the least used, on a log scale."""
    width, height = size
    top, left, bottom = 28, 44, 24
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    ordered = counts.sort(descending=True).values.double()
    share = ordered / counts.sum().clamp_min(1)
    used, most = int((counts > 0).sum()), float(share[0])
    title = f"{used:,} of {len(counts):,} codes used; the most frequent is {most:.1%} of tokens"
    draw.text((left, 8), title, fill=(30, 30, 30), font=font)
    floor = -6.0  # a millionth of the tokens
    across, down = width - left - 12, height - top - bottom
    places = torch.linspace(0, len(share) - 1, across).long()
    for x, value in enumerate(share[places].tolist()):
        if value > 0:
            y = down * max(0.0, 1 - torch.tensor(value).log10().item() / floor)
            draw.line((left + x, top + down - y, left + x, top + down), fill=INK)
    for exponent in (0, -2, -4, -6):
        y = top + down * exponent / floor
        draw.text((8, y - 7), f"1e{exponent}" if exponent else "1", fill=PALE, font=font)
    draw.text((left, height - 18), "codes, the most used first", fill=PALE, font=font)
    return sheet
