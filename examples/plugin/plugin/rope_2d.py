"""A student whose rotary positions are two-dimensional."""

from typing import Any

import torch
from torch import Tensor

from delvm.models import Transformer, TransformerConfig


class Rope2DTransformer(Transformer):
    """Half of each head's angles turn with the row of a token in its image, half with the column.

    Rows are counted across images, so that positions stay distinct.
    """

    def __init__(self, tokens_per_side: int, **settings: Any) -> None:
        self.tokens_per_side = tokens_per_side
        super().__init__(TransformerConfig(**settings))

    def rope_table(self) -> Tensor:
        position = torch.arange(self.config.max_seq_len)
        row, column = position // self.tokens_per_side, position % self.tokens_per_side
        half = self.config.head_dim // 4
        frequencies = self.config.rope_base ** (-torch.arange(half) / half)
        angles = torch.cat([torch.outer(each.float(), frequencies) for each in (row, column)], 1)
        return torch.stack((angles.cos(), angles.sin()))  # (2, T, D / 2)
