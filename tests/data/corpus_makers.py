"""A fake source and a fake tokenizer for tests, importable in any process."""

import errno
import itertools
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from delvm.data.image_io import to_tensor
from delvm.data.shards import writer
from delvm.data.shards.reader import read_tokens
from delvm.data.types import Example, split_into_chunks
from delvm.errors import UserError

PART = 4


@dataclass
class FakeSource:
    """Pairs of noise; the target is the inverted input."""

    name: str = "fake"
    size: int = 16
    seed: int = 0
    read_items: list = field(default_factory=list)
    fail_at: int | None = None

    def settings(self, split, task):
        return {}

    def chunks(self, split):
        trained = {"derain": 7, "pose": 3}
        counts = trained if split == "train" else dict.fromkeys([*trained, "edges"], 2)
        return {task: split_into_chunks(count, PART) for task, count in counts.items()}

    def read(self, split, task, part):
        first = int(part.name) * PART
        for index in range(first, first + part.count):
            yield self.pair(split, task, index)

    def pair(self, split, task, index):
        if len(self.read_items) == self.fail_at:
            raise KeyboardInterrupt
        self.read_items.append((split, task, index))
        seeds = [self.seed, len(split), *task.encode(), index]
        image = np.random.default_rng(seeds).integers(0, 256, (self.size,) * 2 + (3,), np.uint8)
        return Example(f"{index:06d}", task, (image, 255 - image))


class FakeTokenizer:
    """Four tokens per image: the mean brightness of each quarter, as one of 256 codes.

    With more `tokens` than four they repeat, so that shards have few pairs.
    """

    bf16 = False

    def __init__(self, size=16, fail_at=None, tokens=4, seconds=0.0):
        self.seconds = seconds
        self.config = SimpleNamespace(resolution=size, tokens_per_image=tokens)
        self.codebook = torch.linspace(0, 1, 256)[:, None]
        self.batches, self.fail_at = [], fail_at

    def encode(self, pixels):
        assert torch.is_inference_mode_enabled()
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(pixels))
        time.sleep(self.seconds)
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), 2)
        ids = (quarters.flatten(1) * 255).round().long()
        return ids.repeat(1, self.config.tokens_per_image // 4)


@dataclass(frozen=True)
class FakeFactory:
    """A factory of fake tokenizers for workers, some of which fail.

    Attributes:
        kill_once: a file; the process that creates it kills itself at its second batch.
        refuse: the error of loading.
        full: whether writing a shard fails with a full disk.
        seconds: duration of each batch.
    """

    tokens: int = 4
    kill_once: str | None = None
    refuse: str | None = None
    full: bool = False
    seconds: float = 0.0
    device: str = "cpu"

    def __call__(self, worker):
        if self.refuse:
            raise UserError(self.refuse)
        if self.full:
            writer.write_records = no_space
        return KillsItself(self.kill_once, self.tokens) if self.kill_once else self.plain()

    def plain(self):
        return FakeTokenizer(tokens=self.tokens, seconds=self.seconds)


class KillsItself(FakeTokenizer):
    """Kills its process, once."""

    def __init__(self, flag, tokens):
        super().__init__(tokens=tokens)
        self.flag = Path(flag)

    def encode(self, pixels):
        if len(self.batches) == 1:
            try:
                self.flag.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels)


def no_space(path, members):
    list(itertools.islice(members, 1))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tokens_of(pairs):
    with torch.inference_mode():
        sides = [FakeTokenizer().encode(to_tensor([p.input, p.target])) for p in pairs]
    return torch.stack(sides).numpy()


def stored(root, split, task):
    return np.concatenate(list(read_tokens(root, split, task)))


def contents(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
