"""A source of examples: striped images, and the same with the stripes turned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from delvm.data import Example, SourceChunk


@dataclass
class Stripes:
    """Pairs of the task `turn`: vertical stripes, and the same stripes horizontal.

    Attributes:
        count: pairs per split.
        size: side of an image in pixels.
        seed: of the colors and widths.
    """

    count: int = 8
    size: int = 32
    seed: int = 0
    name = "stripes"

    def settings(self, split: str, task: str) -> dict[str, Any]:
        return {"count": self.count}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        return {"turn": [SourceChunk("000000", self.count)]}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example]:
        for number in range(self.count):
            rng = np.random.default_rng([self.seed, len(split), number])
            row = rng.integers(0, 256, (self.size, 3), dtype=np.uint8).repeat(4, 0)[: self.size]
            image = np.broadcast_to(row, (self.size, self.size, 3))
            yield Example(f"{number:06d}", task, (image.copy(), image.swapaxes(0, 1).copy()))
