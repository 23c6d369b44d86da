"""A divergence from outside of the package."""

from torch import Tensor


class TotalVariation:
    """Half of the sum of absolute differences of probabilities, in [0, 1]."""

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log-probabilities (m, K) of two distributions -> (m,)."""
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
