"""Prompts of the pairs that are most similar to the query."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.evaluation import evaluate_students
from delvm.evaluation.queries.prompt_selection import image_features, nearest_prompts
from delvm.evaluation.queries.query_set import build_query_set


def test_features_are_means_of_code_vectors_in_a_grid() -> None:
    codebook = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 10, (2, 64), generator=torch.Generator().manual_seed(1))
    features = image_features(ids, codebook).view(2, 3, 4, 4)
    corner = codebook[ids.view(2, 8, 8)[:, :2, 6:].flatten(1)].mean(dim=1)
    torch.testing.assert_close(features[:, :, 0, 3], corner)
    assert image_features(ids[:, :4], codebook).shape == (2, 3 * 4)
    assert image_features(ids[:, :7], codebook).shape == (2, 3)  # not a square


def test_nearest_pair_is_next_to_the_query() -> None:
    codebook = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    pool = torch.randint(0, 50, (12, 16), generator=torch.Generator().manual_seed(1))
    queries = pool[[3, 7]].clone()
    queries[:, :2] = 0
    (first, second) = nearest_prompts(queries, pool, codebook, 3)
    assert first.shape == (1, 3) and first[0, -1] == 3 and second[0, -1] == 7
    features = image_features(pool, codebook)
    mean = features.mean(dim=0)
    similarity = torch.cosine_similarity(
        image_features(queries[:1], codebook) - mean, features - mean
    )
    assert first[0].tolist() == similarity.argsort()[-3:].tolist()
    # Several prompts take turns, and pairs that are not allowed stay out.
    two = nearest_prompts(queries, pool, codebook, 2, num_prompts=2)
    order = similarity.argsort(descending=True)[:4].tolist()
    assert two[0].tolist() == [[order[2], order[0]], [order[3], order[1]]]
    allowed = [np.array([0, 1, 2]), np.array([5, 7, 9])]
    some = nearest_prompts(queries, pool, codebook, 3, allowed=allowed)
    assert [set(row[0]) for row in some.tolist()] == [{0, 1, 2}, {5, 7, 9}]
    with pytest.raises(UserError, match=r"needs 6 pairs for 2 prompts .* there are 3"):
        nearest_prompts(queries, pool, codebook, 3, 2, allowed)


def test_query_set_with_the_nearest_pairs(shards: Path, tokenizer: Any) -> None:
    options: Any = {"num_queries": 6, "num_shots": 3, "seed": 0, "batch_size": 4}
    nearest, again = (
        build_query_set(shards, "edges", tokenizer, **options | {"seed": seed},
                        prompt_selection="nearest")
        for seed in (0, 1)
    )  # fmt: skip
    assert (nearest.example_indices == again.example_indices).all()
    random = build_query_set(shards, "edges", tokenizer, **options)
    assert not (nearest.example_indices == random.example_indices).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_draws": 2}, "set num_draws=1"),
        ({"shared_prompt": True}, "set shared_prompt=false"),
        ({"prompt_selection": "neares"}, "did you mean 'nearest'"),
    ],
)
def test_selection_that_does_not_fit_is_refused(
    shards: Path, tokenizer: Any, students: Any, tmp_path: Path, changes: dict, words: str
) -> None:
    options: Any = {"prompt_selection": "nearest", "num_queries": 2} | changes
    with pytest.raises(UserError, match=words):
        evaluate_students(shards, tokenizer, students, output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
