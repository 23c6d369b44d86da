"""Small shards for the tests of shards."""

import io
import tarfile

import numpy as np
import torch

from delvm.data.prepare.chunks import finish_chunks, pending_chunks, start_chunks, write_chunk
from delvm.data.shards.codebook import write_codebook
from delvm.data.shards.manifest import plan_images, plan_tokens
from delvm.data.shards.writer import write_tokens
from delvm.data.types import Example, split_into_chunks

SETTINGS = {"source": "fake", "seed": 0, "image_size": 8}


def make_pairs(count, task="derain", size=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, size, size, 3), dtype=np.uint8)
    return [Example(f"{i:06d}", task, tuple(sides)) for i, sides in enumerate(images)]


def write_examples(
    root, split, task, examples, shard_size=1000, overwrite=False, images=2, **settings
):
    """Write a list of examples of so many images, one shard per chunk."""
    plan = plan_images(split, task, shard_size=shard_size, **settings)
    plan.images_per_example = images
    parts = split_into_chunks(len(examples), shard_size)
    if todo := pending_chunks(root, plan, parts, overwrite):
        start_chunks(root, plan, parts, overwrite)
    for part in todo:
        first = int(part.name) * shard_size
        mine = (examples[i] for i in range(first, first + part.count))
        write_chunk(root, plan, part, mine)
    return finish_chunks(root, plan, parts)


def write(root, count=5, **options):
    settings = SETTINGS | {"shard_size": 2} | options
    return write_examples(root, "train", "derain", make_pairs(count), **settings)


def token_plan(count, tokens=4, vocab=100, task="derain"):
    pairs = plan_images("train", task, **SETTINGS)
    return plan_tokens(pairs, count, tokens_per_image=tokens, vocab_size=vocab, fingerprint="abc")


def make_ids(plan, seed=0):
    shape = (plan.count, 2, plan.tokens_per_image)
    return np.random.default_rng(seed).integers(0, plan.vocab_size, shape)


def write_ids(root, plan, step=3, ids=None, **options):
    ids = make_ids(plan) if ids is None else ids

    def chunks(start, stop):
        for first in range(start, stop, step):
            yield ids[first : min(first + step, stop)]

    write_codebook(root, torch.zeros(plan.vocab_size, 2), plan.fingerprint)
    return write_tokens(root, plan, chunks, **options)


def tar_bytes(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.tar"))}


def tar_members(path):
    """(name, contents) of each member."""
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def rewrite_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
