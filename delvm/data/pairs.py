"""What a source of training material looks like: pairs of pictures, by split and task."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    """One example of a task.

    Attributes:
        key: Name of the pair, unique within its split and task; no dots or slashes.
        task: Name of the task, as `delvm.tasks.get` knows it.
        input: Picture (H, W, 3) uint8 RGB.
        target: Picture of the same size: what the task makes of the input.
    """

    key: str
    task: str
    input: np.ndarray
    target: np.ndarray


class Source(Protocol):
    """Where pairs come from. A pair is a pure function of (seed, split, task, index)."""

    name: str
    size: int
    seed: int

    def counts(self, split: str) -> dict[str, int]:
        """How many pairs each task has in a split ("train", "val" or "test")."""
        ...

    def pair(self, split: str, task: str, index: int) -> Pair:
        """The pair at `index`, in [0, counts(split)[task])."""
        ...
