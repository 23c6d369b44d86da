"""Which pairs a prompt holds, and in which order its tokens stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm.data.image_io import to_tensor
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation import query_set as prompting


def drawn(root: Path, tokenizer: Any, **changes: int) -> prompting.Prompts:
    asked = {"queries": 6, "pairs": 3, "seed": 0, "batch_size": 4} | changes
    return prompting.draw(root, "derain", tokenizer, **asked)


def test_sentence_is_pairs_query_truth(shards: Path, tokenizer: Any) -> None:
    prompts = drawn(shards, tokenizer)
    test = list(read_examples(shards, "test", "derain"))
    val = list(read_examples(shards, "val", "derain"))
    for row in range(6):
        pictures = [side for i in prompts.chosen[row] for side in (val[i].input, val[i].target)]
        pictures += [test[row].input, test[row].target]
        wanted = tokenizer.encode(to_tensor(pictures)).flatten()
        torch.testing.assert_close(prompts.sentences(slice(row, row + 1))[0], wanted)
        torch.testing.assert_close(prompts.prefix(slice(row, row + 1))[0], wanted[:-16])


def test_examples_are_the_chosen_pictures(shards: Path, tokenizer: Any) -> None:
    prompts = drawn(shards, tokenizer)
    inputs, targets = prompts.examples(slice(2, 5))
    assert inputs.shape == (3, 3, 3, 16, 16)
    val = list(read_examples(shards, "val", "derain"))
    chosen = val[prompts.chosen[3][1]]
    torch.testing.assert_close(inputs[1, 1], to_tensor([chosen.input])[0])
    torch.testing.assert_close(targets[1, 1], to_tensor([chosen.target])[0])
    mean = to_tensor([pair.target for pair in val]).mean(0)
    torch.testing.assert_close(prompts.mean_target(), mean)


def test_prompts_are_drawn_by_seed_and_place(shards: Path, tokenizer: Any) -> None:
    few, many = drawn(shards, tokenizer), drawn(shards, tokenizer, queries=12, batch_size=5)
    assert np.array_equal(few.chosen, many.chosen[:6])
    assert torch.equal(few.queries.ids, many.queries.ids[:6])
    assert not np.array_equal(few.chosen, drawn(shards, tokenizer, seed=1).chosen)
    assert len({tuple(row) for row in many.chosen}) > 6
    assert all(len(set(row)) == 3 for row in many.chosen)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": 13}, ["queries=13", "holds 12 pairs", "set queries=12"]),
        ({"pairs": 9}, ["pairs=9", "val/derain holds 8 pairs", "set pairs=8"]),
        ({"resolution": 32}, ["16 px", "resolution 32", "set input=FOLDER"]),
        ({"tasks": ["pose"]}, ["no task 'pose'", "set tasks=[derain,edges,segmentation]"]),
    ],
)
def test_what_the_shards_cannot_give(shards: Path, changes: dict, words: list[str]) -> None:
    asked = {"tasks": ["derain"], "resolution": 16, "queries": 12, "pairs": 8} | changes
    with pytest.raises(UserError) as caught:
        prompting.check(shards, asked.pop("tasks"), asked.pop("resolution"), **asked)
    for word in words:
        assert word in str(caught.value)
