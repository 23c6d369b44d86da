"""Which pairs of the pool are in the prompts of each query: random ones, or the most similar.

Notation:
    Q queries    M prompts of each    k example pairs per prompt    P pairs in the pool
    N tokens per image    d width of a code vector
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from delvm import tasks
from delvm.data.datasets.sampler import seeded_rng
from delvm.errors import UserError

Indices = npt.NDArray[np.int64]

_GRID = 4  # features are means of the code vectors in the cells of such a grid


class PromptSelection(StrEnum):
    """How the pairs of a prompt are chosen."""

    random = "random"
    nearest = "nearest"


def allowed_pairs(
    task: str, keys: Sequence[str], pool_keys: Sequence[str], needed: int, shared_prompt: bool
) -> list[Indices] | None:
    """The pool pairs that may be in the prompts of each query; None: all of them.

    Args:
        keys: Of the queries.
        pool_keys: Of the pool.
        needed: Pairs in a prompt.
        shared_prompt: Whether all queries have the same prompts.

    Raises:
        UserError: There are fewer than needed, or all queries of a task with groups would have the
            same prompts.
    """
    group_of = tasks.get_or_default(task).group_of
    if group_of is None:
        return None
    if shared_prompt:
        raise UserError(
            f"shared_prompt=true, but prompts of {task} are of the query's class: set "
            "shared_prompt=false"
        )
    groups = [group_of(key) for key in pool_keys]
    found = []
    for key in keys:
        same = [
            index
            for index, (other, group) in enumerate(zip(pool_keys, groups, strict=True))
            if group == group_of(key) and other != key
        ]
        if len(same) < needed:
            raise UserError(
                f"num_shots={needed}, but {len(same)} pairs of val/{task} are of the class "
                f"{group_of(key)} of a query: set num_shots={max(1, len(same))}, or prepare more"
            )
        found.append(np.array(same, np.int64))
    return found


def select_prompts(
    selection: str,
    seed: int,
    task: str,
    queries: Tensor,
    pool: Tensor,
    codebook: Tensor,
    num_shots: int,
    num_prompts: int = 1,
    shared_prompt: bool = False,
    allowed: list[Indices] | None = None,
) -> Indices:
    """Pool pairs of each query's prompts, (Q, M, k).

    Args:
        selection: A `PromptSelection`; the nearest pairs are the same for all seeds.
        queries, pool, codebook: As of `nearest_prompts`; others as of `sample_prompts`.
    """
    if selection == PromptSelection.nearest:
        return nearest_prompts(queries, pool, codebook, num_shots, num_prompts, allowed)
    sizes = len(queries), len(pool), num_shots
    return sample_prompts(seed, task, *sizes, num_prompts, shared_prompt, allowed)


def sample_prompts(
    seed: int,
    task: str,
    num_queries: int,
    pool_size: int,
    num_shots: int,
    num_prompts: int = 1,
    shared_prompt: bool = False,
    allowed: list[Indices] | None = None,
) -> Indices:
    """Pool pairs of each query's prompts, (Q, M, k).

    A prompt depends on (seed, task, index of the query, number of the prompt) only, so a larger
    query set begins with the smaller one, and more prompts with the fewer. With ``shared_prompt``
    all queries have the prompts of the first one. ``allowed`` are the pool pairs to sample from for
    each query.
    """

    def sample(index: int, number: int) -> Indices:
        # That of evaluations with one prompt comes from the query alone.
        numbers = [number] if number else []
        rng = seeded_rng(seed, task, 0 if shared_prompt else index, *numbers)
        choices = pool_size if allowed is None else allowed[index]
        return rng.choice(choices, size=num_shots, replace=False)

    rows = [[sample(row, number) for number in range(num_prompts)] for row in range(num_queries)]
    return np.array(rows, np.int64)


def nearest_prompts(
    queries: Tensor,
    pool: Tensor,
    codebook: Tensor,
    num_shots: int,
    num_prompts: int = 1,
    allowed: list[Indices] | None = None,
) -> Indices:
    """The pool pairs whose inputs are most similar to each query, (Q, M, k).

    The similarity is the cosine of the tokenizer's features, less their mean over the pool. The
    most similar pair is the last one of a prompt, next to the query; several prompts take turns, so
    that their pairs are about equally similar.

    Args:
        queries: Token ids (Q, N).
        pool: Token ids (P, N).
        codebook: (V, d).

    Raises:
        UserError: There are fewer pairs than the prompts need.
    """
    features = image_features(pool, codebook)
    mean = features.mean(dim=0)
    unit = nn.functional.normalize(features - mean, dim=1)
    similarity = nn.functional.normalize(image_features(queries, codebook) - mean, dim=1) @ unit.T
    needed, rows = num_shots * num_prompts, []
    for row, values in enumerate(similarity.double().numpy()):
        choices = np.arange(len(pool)) if allowed is None else allowed[row]
        if len(choices) < needed:
            raise UserError(
                f"prompt_selection=nearest needs {needed} pairs for {num_prompts} prompts of "
                f"num_shots={num_shots}, but there are {len(choices)}: set num_prompts=1"
            )
        best = choices[np.argsort(-values[choices], kind="stable")[:needed]]
        rows.append([best[number::num_prompts][::-1] for number in range(num_prompts)])
    return np.array(rows, np.int64)


@torch.inference_mode()
def image_features(ids: Tensor, codebook: Tensor) -> Tensor:
    """Features (n, cells x d) of images: means of their code vectors in the cells of a grid.

    Args:
        ids: Token ids (n, N) on the CPU, in raster order.
        codebook: (V, d).
    """
    vectors = codebook.detach().float().cpu()[ids]  # (n, N, d)
    side = round(ids.shape[1] ** 0.5)
    if side * side != ids.shape[1]:
        return vectors.mean(dim=1)
    images = vectors.mT.reshape(len(ids), -1, side, side)  # (n, d, side, side)
    return nn.functional.adaptive_avg_pool2d(images, min(_GRID, side)).flatten(1)
