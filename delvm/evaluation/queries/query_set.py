"""Query sets: each held-out query of a task with example pairs of its own.

Notation:
    Q queries    M prompts that vote    k example pairs per prompt    P pairs in the pool
    B queries in a batch    N tokens per image    H image size
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delvm import tasks
from delvm.data.image_io import to_tensor, upload
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation.queries.prompt_selection import PromptSelection, allowed_pairs, select_prompts
from delvm.models.protocols import TokenizerNet
from delvm.storage import StoragePath

# Example pairs are sampled from the first validation pairs; the limit bounds the memory.
POOL_SIZE = 512


@dataclass(frozen=True)
class EncodedImages:
    """Images and their token ids, in the same order.

    Attributes:
        images: (n, H, H, 3) uint8.
        ids: (n, N) int64 on the CPU.
    """

    images: npt.NDArray[np.uint8]
    ids: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class QuerySet:
    """The held-out queries of one task, each with its prompts.

    Attributes:
        task: Name.
        queries, ground_truth: Q images of the split "test".
        pool_inputs, pool_targets: P images of the split "val".
        example_indices: (Q, M, k) int64, the pool pairs of each query's prompts, in order; with
            several draws (Q, draws x M, k), see `of_draw`.
        shared: whether all queries have the same prompts.
        keys: of the queries.
        pool_keys: of the pool.
        num_draws: times that prompts were sampled.
    """

    task: str
    queries: EncodedImages
    ground_truth: EncodedImages
    pool_inputs: EncodedImages
    pool_targets: EncodedImages
    example_indices: npt.NDArray[np.int64]
    shared: bool = False
    keys: tuple[str, ...] = ()
    pool_keys: tuple[str, ...] = ()
    num_draws: int = 1

    def of_draw(self, draw: int) -> "QuerySet":
        """The same queries with the prompts of one draw."""
        count = self.example_indices.shape[1] // self.num_draws
        indices = self.example_indices[:, draw * count : (draw + 1) * count]
        return replace(self, example_indices=indices, num_draws=1)

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """The group of each query (Q,), "" where the task has none."""
        group_of = tasks.get_or_default(self.task).group_of
        return np.array([group_of(key) if group_of else "" for key in self.keys], np.str_)

    @property
    def num_prompts(self) -> int:
        """M."""
        return int(self.example_indices.shape[1])

    def __len__(self) -> int:
        return len(self.queries)

    def prompts(self, rows: slice, number: int = 0) -> Tensor:
        """Token ids (B, 2k N) of one of the M prompts: input 1, target 1, ..., target k."""
        indices = torch.from_numpy(self.example_indices[rows, number])  # (B, k)
        pairs = torch.stack((self.pool_inputs.ids[indices], self.pool_targets.ids[indices]), dim=2)
        return pairs.flatten(1)  # of (B, k, 2, N)

    def sentences(self, rows: slice) -> Tensor:
        """Token ids (B, (2k + 2) N): the first prompt, the query, the ground truth."""
        images = self.queries.ids[rows], self.ground_truth.ids[rows]
        return torch.cat((self.prompts(rows), *images), dim=1)

    def example_pixels(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the pairs of all prompts, pixels (B, M k, 3, H, H) each."""
        indices = self.example_indices[rows]
        flat = indices.flatten()
        inputs = to_tensor(list(self.pool_inputs.images[flat]))  # (B M k, 3, H, H)
        targets = to_tensor(list(self.pool_targets.images[flat]))
        shape = len(indices), -1, *inputs.shape[1:]
        return inputs.view(shape), targets.view(shape)

    def mean_target(self) -> Tensor:
        """Mean of the P targets, pixels (3, H, H)."""
        mean = self.pool_targets.images.mean(axis=0) / 255
        return torch.from_numpy(mean).permute(2, 0, 1).float()

    def batches(self, size: int) -> Iterator[slice]:
        """Slices of the queries, `size` at a time."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


def validate(
    root: StoragePath, names: list[str], resolution: int, *, num_queries: int, num_shots: int
) -> None:
    """Check that the shards hold what an evaluation of these tasks needs.

    Raises:
        UserError: There are no shards, a task is missing, the image size is not the tokenizer's,
            or there are fewer test pairs than queries or fewer validation pairs than shots.
    """
    for split, key, needed in (
        ("test", "num_queries", num_queries),
        ("val", "num_shots", num_shots),
    ):
        manifests = load_manifests(root, split, "images")
        for task in names:
            if task not in manifests:
                raise UserError(
                    f"no task '{task}' in {root / split}, only {', '.join(manifests)}: "
                    f"set tasks=[{','.join(manifests)}]"
                )
            check_manifest(manifests[task], resolution, key, needed)


def check_manifest(manifest: Manifest, resolution: int, key: str, needed: int) -> None:
    """Refuse shards of another image size, or of fewer examples than a setting asks for.

    Raises:
        UserError: Both values, and what to set.
    """
    if manifest.image_size != resolution:
        raise UserError(
            f"images of {manifest.image_size} px ({manifest.split}/{manifest.task}) != "
            f"resolution {resolution} (tokenizer): set input_dir=FOLDER to pairs of "
            f"{resolution} px, or tokenizer=PATH"
        )
    if manifest.count < needed:
        raise UserError(
            f"{key}={needed}, but {manifest.split}/{manifest.task} holds {manifest.count} pairs: "
            f"set {key}={manifest.count}"
        )


def build_query_set(
    root: StoragePath,
    task: str,
    tokenizer: TokenizerNet,
    *,
    num_queries: int,
    num_shots: int,
    num_prompts: int = 1,
    num_draws: int = 1,
    prompt_selection: str = PromptSelection.random,
    shared_prompt: bool = False,
    seed: int,
    batch_size: int,
) -> QuerySet:
    """Take the first test pairs as queries, and validation pairs for their prompts.

    The prompts of the first draw are those of an evaluation with one draw.
    """
    tests = list(islice(read_examples(root, "test", task), num_queries))
    pool = list(islice(read_examples(root, "val", task), POOL_SIZE))
    keys, pool_keys = (tuple(pair.key for pair in pairs) for pairs in (tests, pool))
    allowed = allowed_pairs(task, keys, pool_keys, num_shots, shared_prompt)
    encoded = (*_encode_pairs(tests, tokenizer, batch_size),)
    encoded_pool = (*_encode_pairs(pool, tokenizer, batch_size),)
    ids = encoded[0].ids, encoded_pool[0].ids, tokenizer.codebook
    count = num_prompts * num_draws
    indices = select_prompts(
        prompt_selection, seed, task, *ids, num_shots, count, shared_prompt, allowed
    )
    return QuerySet(
        task, *encoded, *encoded_pool, indices, shared_prompt, keys, pool_keys, num_draws
    )


def _encode_pairs(
    pairs: list[Example], tokenizer: TokenizerNet, batch_size: int
) -> tuple[EncodedImages, EncodedImages]:
    """Inputs and targets with their token ids."""

    def encoded(images: list[npt.NDArray[np.uint8]]) -> EncodedImages:
        ids = [
            encode(tokenizer, to_tensor(images[start : start + batch_size]))
            for start in range(0, len(images), batch_size)
        ]
        return EncodedImages(np.stack(images), torch.cat(ids))

    return encoded([pair.input for pair in pairs]), encoded([pair.target for pair in pairs])


@torch.inference_mode()
def encode(tokenizer: TokenizerNet, pixels: Tensor) -> Tensor:
    """Token ids (B, N) on the CPU of pixels (B, 3, H, H)."""
    return tokenizer.encode(upload(pixels, tokenizer.codebook.device)).cpu()


@torch.inference_mode()
def decode(tokenizer: TokenizerNet, ids: Tensor) -> Tensor:
    """Pixels (B, 3, H, H) float32 on the CPU of token ids (B, N)."""
    return tokenizer.decode(ids.to(tokenizer.codebook.device)).float().cpu()
