"""Vector quantization: each feature vector becomes the index of its nearest code.

Notation:
    M vectors    V codes in the codebook    d dimension of a code
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_DISTANCE_ELEMENTS = 2**23  # distances in memory at a time: 32 MiB of float32


class VectorQuantizer(nn.Module):
    """A codebook, searched by Euclidean distance (van den Oord et al. 2017, arXiv 1711.00937)."""

    def __init__(self, codebook_size: int, codebook_dim: int, use_l2_norm: bool = False) -> None:
        super().__init__()
        self.use_l2_norm = use_l2_norm
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d) that features are compared with: of length 1 with ``use_l2_norm``."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=1) if self.use_l2_norm else weight

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        """Indices (M,) int64 of the codes nearest to the vectors z (M, d), always in float32."""
        with torch.autocast(z.device.type, enabled=False):
            return _nearest(z.float(), self.codebook.float())


def _nearest(z: Tensor, codebook: Tensor) -> Tensor:
    squares = (codebook * codebook).sum(1)
    # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, where |z|^2 does not change which one is least. Computed
    # for a chunk of vectors at a time, so the full (M, V) matrix is never in memory.
    rows = max(1, _MAX_DISTANCE_ELEMENTS // len(codebook))
    chunks = torch.split(z, rows)
    return torch.cat(
        [torch.addmm(squares, chunk, codebook.T, alpha=-2.0).argmin(1) for chunk in chunks]
    )
