"""Input embedding made of a tokenizer's codebook."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodebookEmbedding(nn.Module):
    """The tokenizer's frozen codebook (V, d), followed by a projection to the model width."""

    codebook: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codebook_size, codebook_dim))
        self.project = nn.Linear(codebook_dim, dim, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, T) -> vectors (B, T, dim)."""
        return cast(Tensor, self.project(F.embedding(input_ids, self.codebook)))

    def load_codebook(self, codebook: Tensor) -> None:
        """Take over a tokenizer's codebook.

        Raises:
            ValueError: it is not (V, d).
        """
        if codebook.shape != self.codebook.shape:
            size, dim = self.codebook.shape
            raise ValueError(
                f"codebook {tuple(codebook.shape)} is not (vocab_size {size}, codebook_dim {dim})"
            )
        self.codebook.copy_(codebook)
