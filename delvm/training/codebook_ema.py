"""Codebook updates outside the gradient: moving averages of features, and reset of dead codes."""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeadCodeReset(Enum):
    """Which feature of the batch a dead code is moved onto.

    ``random``: any of them. ``error``: sampled by its squared distance to its code, as k-means++
    seeds (Arthur and Vassilvitskii 2007), so that what is common and already well matched, such
    as a black background, gets no more codes.
    """

    random = "random"
    error = "error"


class CodebookEMA(nn.Module):
    """State kept alongside a codebook (V, d) while it is trained.

    With ``decay`` the codes follow moving averages of the features assigned to them (van den Oord
    et al. 2017, appendix A.1) instead of a gradient. A code that no feature was assigned to for
    ``dead_code_after`` steps is moved onto a feature of the batch.
    """

    cluster_size: Tensor  # (V,) moving average of the number of features assigned to a code
    embed_avg: Tensor  # (V, d) moving average of their sum
    steps_unused: Tensor  # (V,) steps since a code was last used
    steps_since_reset: Tensor  # (V,) steps since a code was last moved onto a feature
    initialized: Tensor  # () bool
    num_reset: Tensor  # () codes moved onto a feature so far

    def __init__(
        self,
        codebook: Tensor,
        decay: float | None,
        dead_code_after: int | None,
        dead_code_reset: DeadCodeReset = DeadCodeReset.random,
    ) -> None:
        """
        Args:
            codebook: (V, d), updated in place.
            decay: of the moving averages, in (0, 1); None leaves codes to the gradient.
            dead_code_after: steps without use after which a code is moved; None = never.
            dead_code_reset: which feature it is moved onto, or its name.
        """
        super().__init__()
        self._codebook = [codebook]  # in a list: the tensor belongs to the tokenizer's state
        self.decay, self.dead_code_after = decay, dead_code_after
        self.dead_code_reset = DeadCodeReset(dead_code_reset)
        size = codebook.shape[0]
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed_avg", torch.zeros_like(codebook))
        self.register_buffer("steps_unused", torch.full((size,), 1_000_000))  # never used yet
        self.register_buffer("steps_since_reset", torch.zeros(size, dtype=torch.long))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        # Not kept in checkpoints: a resumed run counts from 0 again.
        self.register_buffer("num_reset", torch.zeros((), dtype=torch.long), persistent=False)

    def init_from_codebook(self) -> None:
        """Continue from a trained codebook: the averages begin with its codes as they are."""
        (codebook,) = self._codebook
        self.cluster_size.fill_(1.0)
        self.embed_avg.copy_(codebook.detach())
        self.steps_unused.zero_()
        self.initialized.fill_(True)

    @torch.no_grad()
    def update(self, features: Tensor, ids: Tensor) -> Tensor:
        """Update the codebook from features (M, d) that were assigned to codes ids (M,).

        Returns:
            (): the fraction of the codes used within the last 100 steps.
        """
        (codebook,) = self._codebook
        if not self.initialized and self.decay is not None:
            self._init_from_batch(features, codebook)
            ids = torch.cdist(features, codebook).argmin(1)
        counts = torch.bincount(ids, minlength=len(codebook)).float()
        if self.decay is not None:
            sums = torch.zeros_like(codebook).index_add_(0, ids, features)
            self.cluster_size.lerp_(counts, 1 - self.decay)
            self.embed_avg.lerp_(sums, 1 - self.decay)
            # a code moves only as far as it is used: an unused one stays where it is
            alive = self.cluster_size > 1e-3
            codebook[alive] = self.embed_avg[alive] / self.cluster_size[alive, None]
        self.steps_since_reset.add_(1)
        self.steps_unused.add_(1)[counts > 0] = 0
        if self.dead_code_after is not None:
            self._replace_dead_codes(features, ids, codebook, self.dead_code_after)
        return (self.steps_unused < 100).float().mean()

    def _init_from_batch(self, features: Tensor, codebook: Tensor) -> None:
        """Move the codes onto features of the first batch, so that all begin within reach."""
        codebook.copy_(self._sample_features(features, len(codebook)))
        self.cluster_size.fill_(1.0)
        self.embed_avg.copy_(codebook)
        self.initialized.fill_(True)

    def _replace_dead_codes(
        self, features: Tensor, ids: Tensor, codebook: Tensor, after: int
    ) -> None:
        dead = (self.steps_unused >= after) & (self.steps_since_reset >= after)
        dead = dead.nonzero().flatten()
        if len(dead):
            by_error = self.dead_code_reset is DeadCodeReset.error
            error = (features - F.embedding(ids, codebook)).square().sum(1) if by_error else None
            codebook[dead] = self._sample_features(features, len(dead), error)
            self.cluster_size[dead] = 1.0
            self.embed_avg[dead] = codebook[dead]
            self.steps_since_reset[dead] = 0
            self.num_reset += len(dead)

    def _sample_features(
        self, features: Tensor, count: int, weights: Tensor | None = None
    ) -> Tensor:
        """``count`` features of the batch, repeated with a little noise if it has fewer.

        With ``weights`` (M,) >= 0 they are sampled with probabilities proportional to them.
        """
        if weights is None:
            order = torch.randperm(len(features), device=features.device)
        else:  # clamped, so that there are enough to sample from when many weights are 0
            order = weights.clamp_min(1e-12).multinomial(min(count, len(features)))
        order = order.repeat(-(-count // len(order)))[:count]
        noise = torch.randn(count, features.shape[1], device=features.device)
        return features[order] + 1e-3 * features.std() * noise
