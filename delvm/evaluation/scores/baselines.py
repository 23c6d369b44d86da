"""Baselines that need no model: answers that a student has to beat.

Notation:
    B queries    k example pairs per prompt    H image size
"""

import torch
from torch import Tensor

NAMES = ("copy_query", "nearest_target", "mean_target")


def copy_query(queries: Tensor) -> Tensor:
    """The query itself (B, 3, H, H)."""
    return queries


def nearest_target(queries: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """The target of the example whose input is nearest to the query, in pixel L2.

    Args:
        queries: (B, 3, H, H).
        inputs, targets: The example pairs of each query's own prompt, (B, k, 3, H, H).

    Returns:
        (B, 3, H, H); if several are equally near, the first one.
    """
    distance = (inputs - queries[:, None]).square().flatten(2).sum(-1)  # (B, k)
    rows = torch.arange(len(queries), device=queries.device)
    return targets[rows, distance.argmin(1)]


def answers(
    queries: Tensor, inputs: Tensor, targets: Tensor, mean_target: Tensor
) -> dict[str, Tensor]:
    """The answers of all baselines, by name, (B, 3, H, H) each.

    Args:
        queries, inputs, targets: As for `nearest_target`.
        mean_target: (3, H, H), mean over the targets that prompts are sampled from.
    """
    return {
        "copy_query": copy_query(queries),
        "nearest_target": nearest_target(queries, inputs, targets),
        "mean_target": mean_target.expand_as(queries),
    }
