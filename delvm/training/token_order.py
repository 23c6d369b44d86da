"""Random orders of the tokens of an image, annealed to raster order (RAR, arXiv 2411.00776).

Notation:
    B batch    T tokens per sentence    N tokens per image    K = T / N images    C model width
"""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.models.attention import PackedDocuments
from delvm.training.token_noise import ImageScope


class RandomTokenOrder(nn.Module):
    """Permutes the tokens of an image with a probability that falls from 1 to 0 in training.

    A token keeps its raster position in the rotary angles. Where the token that follows is not the
    next one in raster order, an embedding of that token's position in its image, trained along and
    zero at first, is added to the input: RAR's target-aware positional embedding. RAR adds one at
    every token. Here none means raster order, so the network by itself predicts raster order at any
    time of training, and that is what is validated and exported.
    """

    def __init__(
        self, start: float = 0.5, end: float = 0.75, images: ImageScope = ImageScope.targets
    ) -> None:
        """Set when images are permuted.

        Args:
            start: fraction of the training steps up to which every image is permuted.
            end: fraction from which none is; linear between both. RAR: 0.5 and 0.75.
            images: which images are permuted.
        """
        super().__init__()
        self.start, self.end, self.images = start, end, ImageScope(images)
        self.embed: nn.Parameter | None = None  # (N, C), known with the data
        self.tokens_per_image = 0

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if 0 <= self.start <= self.end <= 1:
            return []
        return [
            f"start={self.start} and end={self.end} are not fractions of training, one after the "
            "other: set start=0.5 end=0.75"
        ]

    def connect(self, model: Any, tokens_per_image: int) -> None:
        """Make the embeddings of N positions, in the width of a network, which is that of its head.

        Raises:
            UserError: the network takes tokens in raster order alone.
        """
        if not {"positions", "target_embed"} <= signature(model.forward_hidden).parameters.keys():
            raise UserError(
                f"module.token_order permutes tokens, and {type(model).__name__}.forward_hidden "
                "takes no positions and target_embed: set module/token_order=none"
            )
        self.tokens_per_image = tokens_per_image
        self.embed = nn.Parameter(torch.zeros(tokens_per_image, model.head.weight.shape[1]))

    def probability(self, progress: float) -> float:
        """Probability that an image is permuted, at a fraction of the training steps."""
        if progress >= self.end:
            return 0.0
        return min(1.0, (self.end - progress) / max(self.end - self.start, 1e-12))

    def sample(self, is_target: Tensor, probability: float) -> Tensor:
        """Sample orders of the tokens of sentences.

        Args:
            is_target: (B, T) bool, from `delvm.training.losses.target_mask`.
            probability: that an image is permuted.

        Returns:
            (B, T) int64: the index in raster order of each token of the new order.
        """
        (b, t), n, device = is_target.shape, self.tokens_per_image, is_target.device
        is_permuted = torch.rand(b, t // n, device=device) < probability
        if self.images is ImageScope.targets:
            is_permuted &= is_target[:, ::n]
        raster = torch.arange(n, device=device)
        orders = torch.rand(b, t // n, n, device=device).argsort(-1)  # (B, K, N)
        orders = torch.where(is_permuted[..., None], orders, raster)
        return (orders + torch.arange(0, t, n, device=device)[:, None]).flatten(1)

    def net_inputs(self, index: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """What `Transformer.forward_hidden` gets besides the permuted ids.

        Args:
            index: (B, T), from `sample`.
            documents: (B, T), the document of each token; None = one per sentence.
        """
        positions = index
        if documents is not None:  # an order stays within an image, so within a document
            positions = PackedDocuments(documents).positions.gather(1, index)
        return {"positions": positions[:, :-1], "target_embed": self(index)}

    def forward(self, index: Tensor) -> Tensor:
        """The embedding (B, T - 1, C), for each token but the last, of the position to predict."""
        assert self.embed is not None, "connect comes first"
        following = index[:, 1:]
        embed = F.embedding(following % self.tokens_per_image, self.embed)
        is_jump = following != index[:, :-1] + 1
        return torch.where(is_jump[..., None], embed, embed.new_zeros(()))
