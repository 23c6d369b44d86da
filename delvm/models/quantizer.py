"""Vector quantization: each feature vector becomes the index of the nearest code.

Notation:
    M vectors    V codes in the codebook    d dimension of a code
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_DISTANCE_ELEMENTS = 2**23  # distances in memory at a time: 32 MiB of float32


class VectorQuantizer(nn.Module):
    """Nearest code by Euclidean distance (van den Oord et al. 2017)."""

    def __init__(self, codes: int, width: int, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d), as features are compared with them."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=1) if self.normalize else weight

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        """Ids (M,) of the codes nearest to the vectors z (M, d), in float32 always."""
        with torch.autocast(z.device.type, enabled=False):
            return self._search(z.float(), self.codebook.float())

    @staticmethod
    def _search(z: Tensor, codes: Tensor) -> Tensor:
        squares = (codes * codes).sum(1)
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 does not change which is least. A part of
        # the vectors at a time, so that no (M, V) matrix is ever whole.
        rows = max(1, _MAX_DISTANCE_ELEMENTS // len(codes))
        return torch.cat(
            [torch.addmm(squares, part, codes.T, alpha=-2.0).argmin(1) for part in z.split(rows)]
        )
