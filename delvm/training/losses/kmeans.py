"""k-means on code vectors, seeded and without empty clusters.

Notation:
    V vectors    d dimension    K clusters
"""

import torch
from torch import Tensor

from delvm.errors import UserError


def kmeans(vectors: Tensor, num_clusters: int, seed: int = 0, max_iterations: int = 100) -> Tensor:
    """The cluster of each vector: Lloyd's algorithm from the centers of k-means++.

    The same vectors and seed give the same clusters, whatever the state of random generators is.

    Args:
        vectors: (V, d).
        num_clusters: K, from 1 to V.
        seed: of the first centers.
        max_iterations: after which the clusters are taken as they are.

    Returns:
        (V,) int64 in [0, K), on the CPU; each cluster has at least one vector.

    Raises:
        UserError: a vector is not finite.
    """
    vectors = vectors.detach().to("cpu", torch.float64)
    if not vectors.isfinite().all():
        raise UserError("the codebook has values that are not finite: it cannot be clustered")
    centers = _first_centers(vectors, num_clusters, torch.Generator().manual_seed(seed))
    clusters = torch.full((len(vectors),), -1)
    for _ in range(max_iterations):
        distances, nearest = torch.cdist(vectors, centers).min(1)
        nearest = _without_empty(nearest, distances, num_clusters)
        if torch.equal(nearest, clusters):
            break
        clusters = nearest
        sums = torch.zeros_like(centers).index_add_(0, clusters, vectors)
        centers = sums / torch.bincount(clusters, minlength=num_clusters)[:, None]
    return clusters


def _first_centers(vectors: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Vectors (K, d) far from each other, as k-means++ samples them (Arthur et al. 2007)."""
    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    squared = torch.full((len(vectors),), float("inf"), dtype=vectors.dtype)
    while len(chosen) < num_clusters:
        squared = squared.minimum((vectors - vectors[chosen[-1]]).square().sum(1))
        # Of equal vectors one is as good as another.
        weights = squared if squared.any() else torch.ones_like(squared)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return vectors[chosen]


def _without_empty(nearest: Tensor, distances: Tensor, num_clusters: int) -> Tensor:
    """Clusters (V,) of which none is empty: those that were get the vectors worst represented."""
    nearest = nearest.clone()
    sizes = torch.bincount(nearest, minlength=num_clusters).tolist()
    farthest = iter(distances.argsort(descending=True, stable=True).tolist())
    for empty in [cluster for cluster, size in enumerate(sizes) if size == 0]:
        moved = next(each for each in farthest if sizes[int(nearest[each])] > 1)
        sizes[int(nearest[moved])] -= 1
        nearest[moved], sizes[empty] = empty, 1
    return nearest
