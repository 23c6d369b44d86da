"""Small corpora to train on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.data import manifest, shards
from delvm.data.examples import Example
from tests.data.shard_makers import write_examples
from tests.training.runs import N, V


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Token shards of a task that can be learnt: the target is the input, one id further."""
    root = tmp_path_factory.mktemp("tokens")
    torch.manual_seed(0)
    manifest.write_codebook(root, torch.randn(V, 8), "f" * 16)
    for split, count in (("train", 256), ("val", 8)):
        plan = manifest.plan_tokens(
            manifest.plan_pairs(split, "pose", source="s", seed=0, image_size=8),
            count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip

        def ids(start, stop):
            inputs = np.random.default_rng(start).integers(0, V, (stop - start, 1, N))
            yield np.concatenate((inputs, (inputs + 1) % V), axis=1)

        shards.write_tokens(root, plan, ids)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pair shards of flat colours."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        colours = rng.integers(0, 256, (8, 2, 3))
        pairs = [
            Example(f"{i}", "derain", tuple(np.full((16, 16, 3), c, np.uint8) for c in both))
            for i, both in enumerate(colours)
        ]
        write_examples(root, split, "derain", pairs, source="s", seed=0, image_size=16)
    return root
