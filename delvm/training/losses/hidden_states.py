"""Matching of hidden states: the student's, projected to the teacher's width.

Notation:
    n rows (the predicted tokens of a batch)    C student width    D teacher width
"""

from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HiddenDistance(Enum):
    """Distance of two hidden states: 1 - their cosine, or the mean squared difference."""

    cosine = "cosine"
    mse = "mse"


class HiddenStateMatching(nn.Module):
    """Distance of the last hidden state to the teacher's, through a trained projection.

    The last one alone, which enters the head: it is what every network's ``forward_hidden`` gives,
    and needs no choice of which layer of one network stands for which of the other. The projection
    is trained with the student and kept in its checkpoints; weights that are exported are without
    it. (Hidden states: Romero et al. 2014, arXiv 1412.6550; the cosine: Sanh et al. 2019, arXiv
    1910.01108.)
    """

    def __init__(
        self, weight: float = 1.0, distance: HiddenDistance = HiddenDistance.cosine
    ) -> None:
        """
        Args:
            weight: of the distance in the loss, at least 0.
            distance: or its name.
        """
        super().__init__()
        self.weight, self.distance = weight, HiddenDistance(distance)
        self.projection: nn.Linear | None = None  # from C to D, known with the networks

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if not self.weight >= 0:
            return [f"weight={self.weight} is below 0: set it to 0 or more"]
        return []

    def connect_networks(self, student: Any, teacher: Any) -> None:
        """Make the projection between two networks' widths, which are those of their heads.

        Its weights depend on the seed of the run alone: a sharded student is initialized later
        than others, and must not get other weights because of them.
        """
        ours, theirs = (net.head.weight.shape[1] for net in (student, teacher))
        generator = torch.Generator().manual_seed(torch.initial_seed())
        with torch.device("meta"):
            projection = nn.Linear(ours, theirs, bias=False)
        projection = projection.to_empty(device="cpu")
        with torch.no_grad():  # as nn.Linear does it
            projection.weight.uniform_(-(ours**-0.5), ours**-0.5, generator=generator)
        self.projection = projection

    def forward(self, hidden: Tensor, teacher_hidden: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum () of distances.

        Args:
            hidden: (n, C) of the student.
            teacher_hidden: (n, D).
            weights: (n,) of each token.
        """
        assert self.projection is not None, "connect_networks comes first"
        projected, target = self.projection(hidden).float(), teacher_hidden.float()
        if self.distance is HiddenDistance.cosine:
            distances = 1 - F.cosine_similarity(projected, target, dim=-1)
        else:
            distances = (projected - target).square().mean(-1)
        return (distances * weights).sum()
