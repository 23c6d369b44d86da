"""Codebook usage: which codes occur, how evenly, and how many bits that takes."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookUsage:
    """How tokens are distributed over a codebook.

    Attributes:
        codebook_size: Codes in the codebook, V.
        num_tokens: Tokens counted.
        num_used: Codes that occur.
        perplexity: exp of the entropy: so many codes, used equally often, have that entropy.
        entropy_bits: Of the distribution of single tokens, in bits per token.
        most_frequent: The most frequent code.
        most_frequent_fraction: Its fraction of the tokens, in [0, 1].
    """

    codebook_size: int
    num_tokens: int
    num_used: int
    perplexity: float
    entropy_bits: float
    most_frequent: int
    most_frequent_fraction: float

    @classmethod
    def of(cls, counts: Tensor) -> "CodebookUsage":
        """Compute it from how often each code occurred, counts (V,)."""
        num_tokens = int(counts.sum())
        effective = float(perplexity(counts))
        most_frequent = int(counts.argmax())
        return cls(
            codebook_size=len(counts),
            num_tokens=num_tokens,
            num_used=int((counts > 0).sum()),
            perplexity=effective,
            entropy_bits=math.log2(effective),
            most_frequent=most_frequent,
            most_frequent_fraction=int(counts[most_frequent]) / max(1, num_tokens),
        )

    def as_dict(self, pixels_per_token: float) -> dict[str, float | int]:
        """The fields for JSON, with bits per pixel: of ids of equal length, and of ideal coding.

        Args:
            pixels_per_token: Pixels of an image divided by its tokens, H * H / N.
        """
        return asdict(self) | {
            "bits_per_pixel": math.log2(self.codebook_size) / pixels_per_token,
            "entropy_bits_per_pixel": self.entropy_bits / pixels_per_token,
        }


def perplexity(counts: Tensor) -> Tensor:
    """Exp of the entropy of counts (V,): the effective number of codes in use."""
    fraction = counts.double() / counts.sum().clamp_min(1)
    effective: Tensor = torch.special.entr(fraction).sum().exp()
    return effective
