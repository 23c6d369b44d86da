"""Roots of token shards that have manifests alone, as large as a corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from delvm.data.datasets.streaming_sentences import STREAM_WINDOW_SHARDS
from delvm.data.shards.codebook import write_codebook
from delvm.data.shards.manifest import Manifest, plan_images, plan_tokens
from delvm.data.shards.replacement import MANIFEST
from experiments.scale.estimate import LVM, PAPER, TOKENS

VOCAB_SIZE = 8192
FINGERPRINT = "0" * 16
# Images that make one example; pairs elsewhere.
_IMAGES_PER_EXAMPLE = {"laion": 1, "lvm": 1, "video": 8}


@dataclass(frozen=True)
class Corpus:
    """A corpus by its counts.

    Attributes:
        images: task -> images.
        task_weights: as of `data.task_weights`; empty weighs all tasks alike.
        window_shards: as of `data.shuffle_window_shards` of streams.
    """

    images: Mapping[str, int]
    task_weights: Mapping[str, float]
    window_shards: int = STREAM_WINDOW_SHARDS


CORPORA = {
    "paper": Corpus(PAPER, PAPER),
    "LVM": Corpus(LVM, {}),
    "paper, window 1": Corpus(PAPER, PAPER, window_shards=1),
    "LVM, window 1": Corpus(LVM, {}, window_shards=1),
}


def manifest(task: str, images: int) -> Manifest:
    """The manifest that `delvm encode` would write for so many images of a task."""
    k = _IMAGES_PER_EXAMPLE.get(task, 2)
    plan = plan_images("train", task, source="simulated", seed=0, image_size=256)
    return plan_tokens(
        replace(plan, images_per_example=k),
        images // k,
        tokens_per_image=TOKENS,
        vocab_size=VOCAB_SIZE,
        fingerprint=FINGERPRINT,
    )


def write_root(root: Path, corpus: Corpus) -> int:
    """Write the manifests and a codebook; returns the bytes of the manifests."""
    write_codebook(root, torch.zeros(VOCAB_SIZE, 1), FINGERPRINT)
    total = 0
    for task, images in corpus.images.items():
        path = root / "train" / task / MANIFEST
        path.parent.mkdir(parents=True)
        manifest(task, images).save(path)
        total += path.stat().st_size
    return total
