"""Checking the examples of a source, and how a shard stores them."""

import io
import re
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from delvm.data.shards.manifest import Manifest, member_names
from delvm.data.shards.writer import Record
from delvm.data.types import Example, RejectedItem


class ExampleValidator:
    """Yields the valid examples of a chunk, and collects the rejected items."""

    def __init__(self, plan: Manifest, examples: Iterable[Example | RejectedItem]) -> None:
        self.plan, self.examples = plan, examples
        self.rejects: list[RejectedItem] = []
        self.images_per_example: int | None = None
        self._keys: set[str] = set()

    def __iter__(self) -> Iterator[Example]:
        for each in self.examples:
            if isinstance(each, RejectedItem):
                self.rejects.append(each)
            else:
                self._validate(each)
                yield each

    def _validate(self, example: Example) -> None:
        plan, key = self.plan, example.key
        if not re.fullmatch(r"[\w-]+", key) or key in self._keys:
            raise ValueError(
                f"key {key!r} of task '{plan.task}' is a duplicate, or has other characters than "
                "letters, digits, - and _"
            )
        if example.task != plan.task:
            raise ValueError(f"example '{key}' has task '{example.task}', not '{plan.task}'")
        self.images_per_example = self.images_per_example or len(example.images)
        if len(example.images) != self.images_per_example:
            raise ValueError(
                f"example '{key}' of task '{plan.task}' has {len(example.images)} images, "
                f"others have {self.images_per_example}"
            )
        shape = (plan.image_size, plan.image_size, 3)
        for image in example.images:
            if image.dtype != np.uint8 or image.shape != shape:
                raise ValueError(
                    f"example '{key}' of task '{plan.task}' has an image {image.dtype} "
                    f"{image.shape}, not uint8 {shape}"
                )
        self._keys.add(key)


def to_record(example: Example) -> Record:
    """An example as the members of a shard: PNG files."""
    record: Record = {"__key__": example.key}
    for name, image in zip(member_names(len(example.images)), example.images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        record[name] = buffer.getvalue()
    return record
