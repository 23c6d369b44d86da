"""Keeping a codebook in use: moving averages of the features, and revival of dead codes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.training.config import Revival


class Codebook(nn.Module):
    """State beside a codebook (V, d) while it is trained.

    With ``decay`` the codes follow moving averages of the features assigned to them (van den Oord
    et al. 2017, appendix A.1) instead of a gradient. A code that no feature was assigned to for
    ``revive_after`` steps is moved onto a feature of the batch: any, or one drawn by its squared
    distance to the code that it has, as k-means++ seeds (Arthur and Vassilvitskii 2007), so that
    what is common and already matched, a black ground, gets no more codes. A ``decay`` of None
    leaves codes to the gradient, a ``revive_after`` of None leaves dead codes alone.
    """

    mass: Tensor  # (V,) moving average of how many features a step a code is given
    total: Tensor  # (V, d) moving average of their sum
    idle: Tensor  # (V,) steps since a code was last used
    age: Tensor  # (V,) steps since a code was last moved by hand
    started: Tensor
    revived: Tensor  # codes moved onto a feature of the batch so far

    def __init__(
        self,
        codes: Tensor,
        decay: float | None,
        revive_after: int | None,
        revive_by: Revival = Revival.chance,
    ) -> None:
        super().__init__()
        self.codes, self.decay = [codes], decay
        self.revive_after, self.revive_by = revive_after, revive_by
        count = codes.shape[0]
        self.register_buffer("mass", torch.zeros(count))
        self.register_buffer("total", torch.zeros_like(codes))
        self.register_buffer("idle", torch.full((count,), 1_000_000))  # never yet
        self.register_buffer("age", torch.zeros(count, dtype=torch.long))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # Not kept in checkpoints: a resumed run counts anew.
        self.register_buffer("revived", torch.zeros((), dtype=torch.long), persistent=False)

    def keep(self) -> None:
        """Take the codes as they are for trained ones: averages go on from where they stand."""
        (codes,) = self.codes
        self.mass.fill_(1.0)
        self.total.copy_(codes.detach())
        self.idle.zero_()
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor) -> Tensor:
        """Account for features z (M, d) that were assigned to codes ids (M,).

        Returns:
            the share of the codes used within the last 100 steps.
        """
        (codes,) = self.codes
        if not self.started and self.decay is not None:
            self._start(z, codes)
            ids = torch.cdist(z, codes).argmin(1)
        counts = torch.bincount(ids, minlength=len(codes)).float()
        if self.decay is not None:
            totals = torch.zeros_like(codes).index_add_(0, ids, z)
            self.mass.lerp_(counts, 1 - self.decay)
            self.total.lerp_(totals, 1 - self.decay)
            # a code moves only as far as it is used: an idle one keeps its place
            alive = self.mass > 1e-3
            codes[alive] = self.total[alive] / self.mass[alive, None]
        self.age.add_(1)
        self.idle.add_(1)[counts > 0] = 0
        if self.revive_after is not None:
            self._revive(z, ids, codes, self.revive_after)
        return (self.idle < 100).float().mean()

    def _start(self, z: Tensor, codes: Tensor) -> None:
        """Put the codes onto features of the first batch, so that all begin within reach."""
        codes.copy_(self._draw(z, len(codes)))
        self.mass.fill_(1.0)
        self.total.copy_(codes)
        self.started.fill_(True)

    def _revive(self, z: Tensor, ids: Tensor, codes: Tensor, after: int) -> None:
        dead = ((self.idle >= after) & (self.age >= after)).nonzero().flatten()
        if len(dead):
            by_error = self.revive_by is Revival.error
            error = (z - F.embedding(ids, codes)).square().sum(1) if by_error else None
            codes[dead] = self._draw(z, len(dead), error)
            self.mass[dead] = 1.0
            self.total[dead] = codes[dead]
            self.age[dead] = 0
            self.revived += len(dead)

    def _draw(self, z: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
        """``count`` features of the batch, repeated with a little noise when it has fewer.

        With ``weights`` (M,) >= 0 the first ones are the likelier to come, the more they weigh.
        """
        if weights is None:
            order = torch.randperm(len(z), device=z.device)
        else:  # clamped, so that there are enough to draw when many weigh nothing
            order = weights.clamp_min(1e-12).multinomial(min(count, len(z)))
        order = order.repeat(-(-count // len(order)))[:count]
        return z[order] + 1e-3 * z.std() * torch.randn(count, z.shape[1], device=z.device)
