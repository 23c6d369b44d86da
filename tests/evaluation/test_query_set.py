"""Which pairs a prompt contains, and the order of its tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm.data.image_io import to_tensor
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation.queries.query_set import QuerySet, build_query_set, validate


def build(root: Path, tokenizer: Any, **changes: Any) -> QuerySet:
    options: dict[str, Any] = {
        "num_queries": 6,
        "num_shots": 3,
        "seed": 0,
        "batch_size": 4,
    } | changes
    return build_query_set(root, "derain", tokenizer, **options)


def test_sentence_is_pairs_query_ground_truth(shards: Path, tokenizer: Any) -> None:
    query_set = build(shards, tokenizer)
    test = list(read_examples(shards, "test", "derain"))
    val = list(read_examples(shards, "val", "derain"))
    for row in range(6):
        images = [
            image
            for i in query_set.example_indices[row, 0]
            for image in (val[i].input, val[i].target)
        ]
        images += [test[row].input, test[row].target]
        expected = tokenizer.encode(to_tensor(images)).flatten()
        torch.testing.assert_close(query_set.sentences(slice(row, row + 1))[0], expected)
        torch.testing.assert_close(query_set.prompts(slice(row, row + 1))[0], expected[:-32])


def test_example_pixels_are_those_of_the_prompt(shards: Path, tokenizer: Any) -> None:
    query_set = build(shards, tokenizer)
    inputs, targets = query_set.example_pixels(slice(2, 5))
    assert inputs.shape == (3, 3, 3, 16, 16)
    val = list(read_examples(shards, "val", "derain"))
    pair = val[query_set.example_indices[3, 0, 1]]
    torch.testing.assert_close(inputs[1, 1], to_tensor([pair.input])[0])
    torch.testing.assert_close(targets[1, 1], to_tensor([pair.target])[0])
    mean = to_tensor([pair.target for pair in val]).mean(0)
    torch.testing.assert_close(query_set.mean_target(), mean)


def test_prompts_depend_on_seed_and_query_index_only(shards: Path, tokenizer: Any) -> None:
    few, many = build(shards, tokenizer), build(shards, tokenizer, num_queries=12, batch_size=5)
    assert np.array_equal(few.example_indices, many.example_indices[:6])
    assert torch.equal(few.queries.ids, many.queries.ids[:6])
    assert not np.array_equal(few.example_indices, build(shards, tokenizer, seed=1).example_indices)
    assert len({tuple(row) for [row] in many.example_indices}) > 6
    assert all(len(set(row)) == 3 for [row] in many.example_indices)


def test_one_prompt_is_that_of_earlier_versions(shards: Path, tokenizer: Any) -> None:
    # As printed by the version before several prompts could vote.
    expected = [[6, 0, 4], [2, 4, 6], [6, 7, 0], [1, 4, 2], [0, 7, 1], [7, 4, 3]]
    assert build(shards, tokenizer).example_indices.tolist() == [[row] for row in expected]


def test_more_prompts_begin_with_the_fewer(shards: Path, tokenizer: Any) -> None:
    one, four = build(shards, tokenizer), build(shards, tokenizer, num_prompts=4)
    assert four.example_indices.shape == (6, 4, 3) and four.num_prompts == 4
    assert np.array_equal(four.example_indices[:, :1], one.example_indices)
    assert len({tuple(each) for row in four.example_indices for each in row}) > 20
    rows = slice(1, 4)
    assert torch.equal(four.prompts(rows), one.prompts(rows))
    third = four.example_indices[1, 2]
    pairs = torch.stack((four.pool_inputs.ids[third], four.pool_targets.ids[third]), dim=1)
    assert torch.equal(four.prompts(rows, 2)[0], pairs.flatten())
    assert torch.equal(four.sentences(rows), one.sentences(rows))
    inputs, _ = four.example_pixels(rows)
    assert inputs.shape == (3, 12, 3, 16, 16)
    assert torch.equal(inputs[:, :3], one.example_pixels(rows)[0])


def test_shared_prompts_are_those_of_the_first_query(shards: Path, tokenizer: Any) -> None:
    own = build(shards, tokenizer, num_prompts=2)
    shared = build(shards, tokenizer, num_prompts=2, shared_prompt=True)
    assert shared.shared and not own.shared
    assert all(np.array_equal(row, own.example_indices[0]) for row in shared.example_indices)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_queries": 13}, ["num_queries=13", "holds 12 pairs", "set num_queries=12"]),
        ({"num_shots": 9}, ["num_shots=9", "val/derain holds 8 pairs", "set num_shots=8"]),
        ({"resolution": 32}, ["16 px", "resolution 32", "set input_dir=FOLDER"]),
        ({"tasks": ["pose"]}, ["no task 'pose'", "set tasks=[derain,edges,segmentation]"]),
    ],
)
def test_validate_names_what_the_shards_lack(shards: Path, changes: dict, words: list[str]) -> None:
    options = {"num_queries": 12, "num_shots": 8} | changes
    tasks, resolution = options.pop("tasks", ["derain"]), options.pop("resolution", 16)
    with pytest.raises(UserError) as caught:
        validate(shards, tasks, resolution, **options)
    for word in words:
        assert word in str(caught.value)
