"""An untrained tokenizer, students that know the answers, and shards of tiny pairs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from delvm.data.image_io import to_tensor
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from tests.data.shard_makers import write_examples

SIDE, BLOCK = 16, 4
LEVELS = 6
TASKS = ("segmentation", "derain", "edges")


class BlockTokenizer(nn.Module):
    """The token of a block is its mean color, rounded to a fixed palette.

    It has only what an evaluation needs of a `TokenizerNet`: no config, no base class.
    """

    codebook: Tensor

    def __init__(self, resolution: int = SIDE, block: int = BLOCK, levels: int = LEVELS) -> None:
        super().__init__()
        self.resolution, self.block = resolution, block
        self.codebook_size = levels**3
        self.tokens_per_image = (resolution // block) ** 2
        axis = torch.linspace(0, 1, levels)
        self.register_buffer("codebook", torch.cartesian_prod(axis, axis, axis))

    def encode(self, pixels: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(pixels, self.block)
        return torch.cdist(means.flatten(2).mT, self.codebook).argmin(-1)

    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        side = self.resolution // self.block
        colors = self.codebook[ids].mT.unflatten(2, (side, side))
        return nn.functional.interpolate(colors, scale_factor=float(self.block))


class Oracle(nn.Module):
    """A student that knows the ground truth of each query, and gets a fraction of it right.

    It has only what an evaluation needs of a `StudentNet`, and a cache of what it has read.
    """

    def __init__(
        self, tokenizer: BlockTokenizer, known: Iterable[Example], accuracy: float
    ) -> None:
        super().__init__()
        self.tokens, self.vocab_size = tokenizer.tokens_per_image, tokenizer.codebook_size
        self.max_seq_len = 8 * self.tokens
        self.tokenizer_fingerprint = ""
        self.weight = nn.Parameter(torch.zeros(1))
        self.known = {}
        rng = np.random.default_rng(0)
        for pair in known:
            query, truth = tokenizer.encode(to_tensor([pair.input, pair.target]))
            wrong = torch.from_numpy(rng.random(self.tokens) >= accuracy)
            answer = torch.where(wrong, query, truth)
            self.known[tuple(query.tolist())] = answer.tolist()

    def make_kv_cache(self, batch_size: int, max_seq_len: int) -> SimpleNamespace:
        return SimpleNamespace(ids=torch.empty(batch_size, 0, dtype=torch.int64))

    def forward_hidden(
        self, input_ids: Tensor, cache: SimpleNamespace | None = None, document_ids: None = None
    ) -> Tensor:
        sentence = input_ids
        if cache is not None:
            sentence = cache.ids = torch.cat((cache.ids, input_ids), dim=1)
        first = sentence.shape[1] - input_ids.shape[1]
        positions = range(first, sentence.shape[1])
        return torch.tensor([[self._next(row, i) for i in positions] for row in sentence.tolist()])

    def _next(self, row: list[int], position: int) -> int:
        """The token after a position: known in the answer to a query, 0 elsewhere."""
        image, index = divmod(position + 1, self.tokens)
        if image == 0:
            return 0
        previous = tuple(row[(image - 1) * self.tokens : image * self.tokens])
        return self.known.get(previous, [0] * self.tokens)[index]

    def head(self, hidden: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot(hidden, self.vocab_size).float()


def tiny_pair(split: str, task: str, index: int) -> Example:
    """A random image and, depending on the task, a mask, the clean image or a darker one."""
    rng = np.random.default_rng([len(split), len(task), index])
    grid = SIDE // BLOCK
    clean = rng.integers(0, 256, (grid, grid, 3)).repeat(BLOCK, 0).repeat(BLOCK, 1)
    image, target = clean.copy(), clean
    if task == "segmentation":
        target = np.zeros_like(clean)
        top, left = rng.integers(0, 2, 2) * BLOCK
        target[top : top + 2 * BLOCK, left : left + 2 * BLOCK] = (255, 0, 0)
    elif task == "derain":
        image[:, :: BLOCK // 2] = 255
    else:
        target = clean // 2
    return Example(f"{task}-{index}", task, (image.astype(np.uint8), target.astype(np.uint8)))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 12 test and 8 val pairs per task, 16 px."""
    root = tmp_path_factory.mktemp("shards")
    for split, count in (("val", 8), ("test", 12)):
        for task in TASKS:
            pairs = [tiny_pair(split, task, index) for index in range(count)]
            write_examples(root, split, task, pairs, source="tiny", seed=0, image_size=SIDE)
    return root


@pytest.fixture
def make_tokenizer() -> Callable[..., BlockTokenizer]:
    """Builds a tokenizer with other settings."""
    return lambda **changes: BlockTokenizer(**changes)


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., BlockTokenizer]) -> BlockTokenizer:
    return make_tokenizer()


@pytest.fixture
def students(shards: Path, tokenizer: BlockTokenizer) -> dict[str, Oracle]:
    """One always right; one half right, with the other tokens copied from the query."""
    known = [pair for task in TASKS for pair in read_examples(shards, "test", task)]
    return {"oracle": Oracle(tokenizer, known, 1.0), "half": Oracle(tokenizer, known, 0.5)}
