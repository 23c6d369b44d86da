"""Which classes a teacher's and a student's distributions are compared over, if not all tokens.

Notation:
    m rows (predicted tokens)    V vocabulary    K classes    d dimension of a code
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.training.losses.kmeans import kmeans
from delvm.training.losses.top_k import with_tail


class Classes(Protocol):
    """What `DistillationLoss` asks of ``classes``: any class of this form can be one.

    With a method ``connect_codebook(codebook)`` it gets the codebook before training begins; as a
    `torch.nn.Module`, its buffers are where the student is.
    """

    def __call__(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (m, V) of both -> (m, K) of both, differentiable."""


class TopK:
    """The k tokens that the teacher finds most likely, and all others as one more class."""

    def __init__(self, k: int = 16) -> None:
        """
        Args:
            k: from 1 to V - 1.
        """
        self.k = k

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return [] if self.k >= 1 else [f"k={self.k} is below 1: set it to 16"]

    def connect_codebook(self, codebook: Tensor) -> None:
        """Check k against the codebook (V, d).

        Raises:
            UserError: there are not more than k codes.
        """
        if self.k >= len(codebook):
            raise UserError(
                f"module.loss.classes.k={self.k} >= {len(codebook)} codes: set "
                f"module.loss.classes.k={len(codebook) // 2} or module/loss/classes=none"
            )

    def __call__(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """(m, V) of both -> (m, k + 1) of both."""
        ids = teacher.detach().topk(self.k, dim=-1).indices
        return with_tail(teacher, ids), with_tail(student, ids)


class CodeClusters(nn.Module):
    """Codes that are near in the codebook as one class, since they stand for nearly the same patch.

    A student is then not corrected for choosing among codes that look alike. The clusters are those
    of k-means on the code vectors, made once; checkpoints keep them, so that a resumed run has the
    same. Ids beyond the codebook are a class each.
    """

    clusters: Tensor

    def __init__(self, codes_per_cluster: float = 4.0, seed: int = 0) -> None:
        """
        Args:
            codes_per_cluster: V / K on average, at least 1.
            seed: of the first cluster centers.
        """
        super().__init__()
        self.codes_per_cluster, self.seed = codes_per_cluster, seed
        self.num_clusters = 0  # known with the codebook
        self.register_buffer("clusters", torch.zeros(0, dtype=torch.int64))

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if not self.codes_per_cluster >= 1:
            return [f"codes_per_cluster={self.codes_per_cluster} is below 1: set it to 4"]
        return []

    def connect_codebook(self, codebook: Tensor) -> None:
        """Cluster the codes of a codebook (V, d)."""
        self.num_clusters = max(1, round(len(codebook) / self.codes_per_cluster))
        found = kmeans(codebook, self.num_clusters, self.seed)
        self.clusters = found.to(self.clusters.device)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """(m, V) of both -> (m, K) of both."""
        assert len(self.clusters), "connect_codebook comes first"
        num_codes, num_clusters = len(self.clusters), self.num_clusters
        clusters = self.clusters
        if extra := teacher.shape[-1] - num_codes:
            own = torch.arange(num_clusters, num_clusters + extra, device=clusters.device)
            clusters = torch.cat((clusters, own))
        return (
            merge(teacher, clusters, num_clusters + extra),
            merge(student, clusters, num_clusters + extra),
        )


def merge(log_probs: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """Log-probabilities (m, K) of clusters of tokens.

    Args:
        log_probs: (m, V) float32.
        clusters: (V,) int64, the cluster of each token.
        num_clusters: K; each has at least one token.
    """
    index = clusters.expand_as(log_probs)
    shape = (len(log_probs), num_clusters)
    # Relative to the largest of each cluster, so that no cluster's sum underflows to 0.
    largest = log_probs.detach().new_full(shape, float("-inf"))
    largest = largest.scatter_reduce(-1, index, log_probs.detach(), "amax")
    relative = (log_probs - largest.gather(-1, index)).exp()
    return log_probs.new_zeros(shape).scatter_add(-1, index, relative).log() + largest
