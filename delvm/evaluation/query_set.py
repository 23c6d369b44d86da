"""Prompts for an evaluation: each held-out query with example pairs of its own.

Notation:
    Q queries    k example pairs in a prompt    P pairs they are drawn from    N tokens a picture
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from delvm.data.datasets.sampler import seeded_rng
from delvm.data.image_io import to_tensor
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.models.vqgan import VQGAN
from delvm.storage import StoragePath

# Example pairs come from the first of the validation pairs; this bounds the memory.
POOL = 512


@dataclass(frozen=True)
class Side:
    """Pictures and their ids, in the same order.

    Attributes:
        pictures: (n, H, H, 3) uint8.
        ids: (n, N) int64 on the CPU.
    """

    pictures: np.ndarray
    ids: Tensor


@dataclass(frozen=True)
class Prompts:
    """The held-out queries of one task and the prompt of each.

    Attributes:
        task: Its name.
        queries, truths: Q pictures, from the split "test".
        inputs, targets: P pictures, from the split "val".
        chosen: (Q, k) int64, which of the P pairs stand before a query, in order.
    """

    task: str
    queries: Side
    truths: Side
    inputs: Side
    targets: Side
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.queries.pictures)

    def prefix(self, rows: slice) -> Tensor:
        """Token ids (B, (2k + 1) N): in1, tgt1, ... ink, tgtk, query."""
        chosen = torch.from_numpy(self.chosen[rows])
        pairs = torch.stack((self.inputs.ids[chosen], self.targets.ids[chosen]), dim=2)
        return torch.cat((pairs.flatten(1), self.queries.ids[rows]), dim=1)  # pairs (B, k, 2, N)

    def sentences(self, rows: slice) -> Tensor:
        """Token ids (B, (2k + 2) N): the prefix, then the truth."""
        return torch.cat((self.prefix(rows), self.truths.ids[rows]), dim=1)

    def examples(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the prompts' pairs, pixels (B, k, 3, H, H) each."""
        shape = self.chosen[rows].shape
        flat = self.chosen[rows].flatten()
        inputs, targets = (to_tensor(list(s.pictures[flat])) for s in (self.inputs, self.targets))
        return inputs.unflatten(0, shape), targets.unflatten(0, shape)

    def mean_target(self) -> Tensor:
        """Mean of the P targets, pixels (3, H, H)."""
        mean = self.targets.pictures.mean(axis=0) / 255
        return torch.from_numpy(mean).permute(2, 0, 1).float()

    def batches(self, size: int) -> Iterator[slice]:
        """Rows of queries, `size` at a time."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def check(
    root: StoragePath, tasks: list[str], resolution: int, *, queries: int, pairs: int
) -> None:
    """Refuse, before any work, what the shards cannot give.

    Raises:
        UserError: No shards, a task that they lack, pictures of another size than the tokenizer's,
            fewer test pairs than queries, or fewer validation pairs than a prompt takes.
    """
    for split, needed, name in (("test", queries, "queries"), ("val", pairs, "pairs")):
        manifests = load_manifests(root, split, "images")
        for task in tasks:
            if task not in manifests:
                raise UserError(
                    f"no task '{task}' in {root / split}, only {', '.join(manifests)}: "
                    f"set tasks=[{','.join(manifests)}]"
                )
            _check_manifest(manifests[task], resolution, needed, name)


def _check_manifest(manifest: Manifest, resolution: int, needed: int, name: str) -> None:
    if manifest.image_size != resolution:
        raise UserError(
            f"pictures of {manifest.image_size} px ({manifest.split}/{manifest.task}) != "
            f"resolution {resolution} (tokenizer): set input=FOLDER to pairs of {resolution} px, "
            "or tokenizer=PATH"
        )
    if manifest.count < needed:
        raise UserError(
            f"{name}={needed}, but {manifest.split}/{manifest.task} holds {manifest.count} pairs: "
            f"set {name}={manifest.count}"
        )


def draw(
    root: StoragePath,
    task: str,
    tokenizer: VQGAN,
    *,
    queries: int,
    pairs: int,
    seed: int,
    batch_size: int,
) -> Prompts:
    """The first `queries` test pairs, each with `pairs` validation pairs drawn for it alone.

    A query's prompt depends on (seed, task, place of the query) only, so asking for more queries
    changes none of the earlier ones.
    """
    asked = list(islice(read_examples(root, "test", task), queries))
    pool = list(islice(read_examples(root, "val", task), POOL))
    chosen = [
        seeded_rng(seed, task, place).choice(len(pool), size=pairs, replace=False)
        for place in range(len(asked))
    ]
    return Prompts(
        task,
        *_sides(asked, tokenizer, batch_size),
        *_sides(pool, tokenizer, batch_size),
        np.stack(chosen).astype(np.int64),
    )


def _sides(pairs: list[Example], tokenizer: VQGAN, batch_size: int) -> tuple[Side, Side]:
    sides = []
    for pictures in ([pair.input for pair in pairs], [pair.target for pair in pairs]):
        ids = [
            encode(tokenizer, to_tensor(pictures[start : start + batch_size]))
            for start in range(0, len(pictures), batch_size)
        ]
        sides.append(Side(np.stack(pictures), torch.cat(ids)))
    return sides[0], sides[1]


@torch.inference_mode()
def encode(tokenizer: VQGAN, pixels: Tensor) -> Tensor:
    """Ids (B, N) on the CPU of pixels (B, 3, H, H)."""
    return tokenizer.encode(pixels.to(tokenizer.codebook.device)).cpu()


@torch.inference_mode()
def decode(tokenizer: VQGAN, ids: Tensor) -> Tensor:
    """Pixels (B, 3, H, H) on the CPU of ids (B, N)."""
    return tokenizer.decode(ids.to(tokenizer.codebook.device)).float().cpu()
