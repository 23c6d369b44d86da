"""A small corpus in many shards, for tests of streams, and what the streams of a run read of it."""

import numpy as np
import torch

from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.data.types import Example
from tests.data.shard_makers import write_examples

TOKENS = 4
COUNTS = {"derain": 23, "video": 14}
KINDS = {"derain": 2, "video": 3}
OFFSET = {"derain": 0, "video": 500}
IMAGES = 6  # in a sentence
IMAGE_COUNTS = {"derain": 11, "photos": 9}
IMAGE_KINDS = {"derain": 2, "photos": 1}


def write_corpus(root, monkeypatch):
    """Shards of two examples; an image is one id, repeated, of this example and task alone."""
    monkeypatch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 1)
    codebooks.write_codebook(root, torch.randn(1000, 2), "f" * 16)
    for split, scale in (("train", 1), ("val", 2)):
        for task, k in KINDS.items():
            monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 2 * k * TOKENS)
            images = manifest.plan_images(split, task, source="s", seed=0, image_size=8)
            images.images_per_example = k
            plan = manifest.plan_tokens(
                images,
                COUNTS[task] // scale,
                tokens_per_image=TOKENS,
                vocab_size=1000,
                fingerprint="f" * 16,
            )
            assert plan.shards[0]["count"] == 2

            def ids(start, stop, task=task, k=k):
                first = OFFSET[task] + k * np.arange(start, stop)
                found = first[:, None] + np.arange(k)
                yield np.repeat(found[:, :, None], TOKENS, axis=2).astype(np.uint16)

            writer.write_tokens(root, plan, ids)
    return root


def write_images(root, side=8):
    """Image shards of two examples: 11 pairs of derain, 9 single images of photos; all random."""
    rng = np.random.default_rng(0)
    for split, scale in (("train", 1), ("val", 4)):
        for task, k in IMAGE_KINDS.items():
            images = rng.integers(0, 256, (IMAGE_COUNTS[task] // scale, k, side, side, 3), np.uint8)
            examples = [Example(f"{i:06d}", task, tuple(each)) for i, each in enumerate(images)]
            settings = {"source": "fake", "seed": 0, "image_size": side}
            write_examples(root, split, task, examples, shard_size=2, images=k, **settings)
    return root


def open_streams(root, ranks=1, workers=1, **changes):
    """The data set of each rank, at the beginning."""
    settings = {"path": str(root), "images_per_sentence": IMAGES, "batch_size": 2}
    settings |= {"num_workers": workers, "shuffle_window_shards": 2} | changes
    return [_of_rank(StreamingSentencesConfig(**settings), rank, ranks) for rank in range(ranks)]


def _of_rank(config, rank, ranks):
    data = StreamingSentences(config, seed=0)
    data.rank, data.world_size = rank, ranks
    data.state = data.begin()
    return data


def examples_of(batch, tasks):
    """(task, number) of each example of a batch, after a check that its images are complete."""
    found = []
    for ids, number in zip(batch["input_ids"].numpy(), batch["task"].tolist(), strict=True):
        task = tasks[number]
        images = ids.reshape(-1, KINDS[task], TOKENS)
        assert (images == images[:, :, :1]).all()
        assert (images[:, :, 0] == images[:, :1, 0] + np.arange(KINDS[task])).all()
        found += [(task, (int(i) - OFFSET[task]) // KINDS[task]) for i in images[:, 0, 0]]
    return found
