"""Another order of the annotations in each sentence, as LVM (arXiv 2312.00785) draws them."""

import numpy as np
import numpy.typing as npt

from delvm.data.datasets.sampler import seeded_rng
from delvm.data.shards.manifest import Manifest

TokenArray = npt.NDArray[np.uint16]


def has_annotations(manifest: Manifest) -> bool:
    """Whether an example is an image and then annotations of it, in an order without meaning."""
    annotated = manifest.source == "annotated" or manifest.task in ("annotated", "tuple")
    return annotated and manifest.images_per_example > 2


def shuffle_annotations(
    examples: TokenArray, images_per_example: int, seed: int, task: str, first: int
) -> TokenArray:
    """The examples of a sentence with their annotations in another order, the same for all of them.

    So the first example shows which annotation comes next in the others. The image stays first.

    Args:
        examples: ids (n, k * N).
        images_per_example: k.
        seed: of the training.
        task: its name.
        first: number of the first example in the endless sequence of the task's examples.
    """
    rng = seeded_rng(seed, "annotation order", task, first)
    order = [0, *(1 + rng.permutation(images_per_example - 1))]
    images = examples.reshape(len(examples), images_per_example, -1)
    return np.ascontiguousarray(images[:, order]).reshape(examples.shape)
