"""Small corpora to train on."""

from pathlib import Path

import numpy as np
import pytest

from delvm.data.types import Example
from tests.data.shard_makers import write_examples
from tests.training.runs import write_ids


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Token shards of a task that can be learned: the target is the input, one id further."""
    root = tmp_path_factory.mktemp("tokens")
    write_ids(root)
    return root


def write_flat_images(root: Path) -> None:
    """Image shards of pairs of flat colors, 16 px."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        colors = rng.integers(0, 256, (8, 2, 3))
        pairs = [
            Example(f"{i}", "derain", tuple(np.full((16, 16, 3), c, np.uint8) for c in pair))
            for i, pair in enumerate(colors)
        ]
        write_examples(root, split, "derain", pairs, source="s", seed=0, image_size=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Image shards of flat colors."""
    root = tmp_path_factory.mktemp("images")
    write_flat_images(root)
    return root
