"""Documents of any lengths packed into rows of one context, in an order computed directly.

A document is a sequence of examples of one task: pairs, tuples, clips, or a single image. A row
holds several documents, which do not attend to each other, and padding where no further example
fits. Which documents a row holds is a function of its number alone:

    document n  --TaskSchedule-->  task; it has as many examples as fit, up to a full row
    row r  ->  its documents: the layout repeats after one period of the schedule

so nothing is replayed when a run resumes, and workers and ranks divide the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delvm.data.datasets.sampler import SCHEDULE_PERIOD, Int64, TaskSchedule
from delvm.data.datasets.sentences import (
    SentenceDataset,
    SentencesConfig,
    ValidationSentences,
    fills_sentences,
    first_examples,
    validation_manifests,
    validation_sentences,
)
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.errors import UserError
from delvm.progress import log
from delvm.storage import as_path

PADDING = -1  # document and task of an image that is padding


class Document(NamedTuple):
    """A document of a row.

    Attributes:
        task: its position in the mixture.
        first: number of its first example in the endless sequence of the task's examples.
        num_examples: how many it has.
        start: its first image in the row.
    """

    task: int
    first: int
    num_examples: int
    start: int

    @property
    def positions(self) -> Int64:
        """The numbers of its examples, (num_examples,)."""
        return np.arange(self.first, self.first + self.num_examples)


class PackedSchedule:
    """The documents of each row."""

    def __init__(
        self,
        weights: Mapping[str, float],
        images_per_example: Sequence[int],
        max_examples: Sequence[int],
        images_per_row: int,
    ) -> None:
        """Lay out one period.

        Args:
            weights: of each task among the documents, summing to 1.
            images_per_example: of each task, at most ``images_per_row``.
            max_examples: of a document, for each task.
            images_per_row: images in a row.
        """
        tasks, _ = TaskSchedule(weights)(np.arange(SCHEDULE_PERIOD))
        rows: list[list[Document]] = [[]]
        examples, left, padding = [0] * len(weights), images_per_row, 0
        for task in tasks.tolist():
            size = images_per_example[task]
            if left < size:
                padding += left
                rows.append([])
                left = images_per_row
            count = min(max_examples[task], left // size)
            rows[-1].append(Document(task, examples[task], count, images_per_row - left))
            examples[task] += count
            left -= count * size
            if not left:
                rows.append([])
                left = images_per_row
        if not rows[-1]:
            rows.pop()
        else:  # a period ends with a row, so that the next begins with one
            padding += left
        self._rows, self._examples = rows, np.array(examples)
        self.padding = padding / (len(rows) * images_per_row)
        ends = np.zeros((len(rows) + 1, len(weights)), np.int64)
        for number, row in enumerate(rows):
            for document in row:
                ends[number + 1, document.task] += (
                    document.num_examples * images_per_example[document.task]
                )
        self._images_before: Int64 = ends.cumsum(0)

    def __call__(self, row: int) -> list[Document]:
        """The documents of a row, from 0 on, in their order."""
        period, slot = divmod(row, len(self._rows))
        before = (period * self._examples).tolist()
        return [each._replace(first=each.first + before[each.task]) for each in self._rows[slot]]

    def images(self, next_row: int) -> Int64:
        """Images of each task in the rows before this one, (tasks,)."""
        periods, slot = divmod(next_row, len(self._rows))
        found: Int64 = periods * self._images_before[-1] + self._images_before[slot]
        return found


class PackedDataset(SentenceDataset):
    """Endless rows of packed documents; an index is a complete batch of row numbers.

    A batch is {"input_ids": (B, T) int64, "next_index"}, and for each image of a row, (B, K):
    "task" int64, "document" int64, "is_target" bool. `PADDING` is the task and document of padding.
    """

    def __init__(
        self,
        config: SentencesConfig,
        seed: int,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> None:
        """Read the manifests of the training split; arguments and errors as of the base class."""
        super().__init__(config, seed, manifests)
        sizes = [self.manifests[task].images_per_example for task in self.mixture_weights]
        self.packed = PackedSchedule(
            self.mixture_weights, sizes, self.examples_per_sentence, config.num_images
        )

    def sentence_sizes(self, manifests: list[Manifest]) -> list[int]:
        return document_sizes(self.config, manifests)

    @property
    def padding(self) -> float:
        """Fraction of all images that is padding."""
        return self.packed.padding

    @property
    def sentences_per_epoch(self) -> int:
        counts = [shuffle.num_examples for shuffle in self.shuffles]
        images = int((np.array(counts) * self._images_per_example).sum())
        return max(1, round(images / self.config.num_images / (1 - self.padding)))

    @property
    def order(self) -> dict[str, Any]:
        return super().order | {"packing": True}

    def mixture(self, next_index: int) -> dict[str, float]:
        """Fraction of each task among the images of the rows before this one."""
        images = self.packed.images(next_index)
        parts = images / max(1, int(images.sum()))
        return dict(zip(self.mixture_weights, parts.tolist(), strict=True))

    def locate(self, indices: Int64) -> list[dict[str, Any]]:
        """The examples of these rows (B,) on disk, in their order."""
        found: list[dict[str, Any]] = []
        for row in indices.tolist():
            for each in self.packed(row):
                where = self.shuffles[each.task](each.positions)
                found += self.readers[each.task].describe(*where)
        return found

    def __getitem__(self, indices: Int64) -> dict[str, Any]:
        """The batch of the rows with these numbers (B,)."""
        assert self.token_layout.tokens_per_image is not None
        rows = PackedRows(len(indices), self.config.num_images, self.token_layout.tokens_per_image)
        placed = [
            (row, document)
            for row, index in enumerate(indices.tolist())
            for document in self.packed(index)
        ]
        for task in {document.task for _, document in placed}:
            mine = [each for each in placed if each[1].task == task]
            positions = np.concatenate(
                [np.arange(d.first, d.first + d.num_examples) for _, d in mine]
            )
            size = int(self._images_per_example[task])
            examples = np.empty((len(positions), size * rows.tokens_per_image), np.uint16)
            self.readers[task].read(*self.shuffles[task](positions), examples)
            done = 0
            for row, document in mine:
                self.place(rows, row, document, examples[done : done + document.num_examples])
                done += document.num_examples
        return rows.batch() | {"next_index": int(indices[-1]) + 1}

    def place(
        self, rows: "PackedRows", row: int, document: Document, examples: npt.NDArray[np.uint16]
    ) -> None:
        """Write the examples (n, size * N) of a document into its row."""
        task, size = int(self._task_ids[document.task]), self._images_per_example[document.task]
        examples = self.order_annotations(document.task, document.first, examples)
        rows.place(row, document.start, examples, task, int(size))


class PackedRows:
    """A batch of rows that is being filled."""

    def __init__(self, count: int, num_images: int, tokens_per_image: int) -> None:
        self.tokens_per_image = tokens_per_image
        self.ids = np.zeros((count, num_images * tokens_per_image), np.uint16)
        self.task = np.full((count, num_images), PADDING)
        self.document = np.full((count, num_images), PADDING)
        self.is_target = np.zeros((count, num_images), bool)

    def place(
        self, row: int, start: int, examples: npt.NDArray[np.uint16], task: int, size: int
    ) -> None:
        """Write the examples (n, size * N) of a document, from the image ``start`` of a row on."""
        images = len(examples) * size
        part = slice(start, start + images)
        tokens = slice(start * self.tokens_per_image, (start + images) * self.tokens_per_image)
        self.ids[row, tokens] = examples.reshape(-1)
        self.task[row, part] = task
        # Single images are unrelated: each is a document of its own.
        self.document[row, part] = start + np.arange(images) if size == 1 else start
        self.is_target[row, part] = np.arange(images) % 2 == 1 if size == 2 else True

    def batch(self) -> dict[str, Tensor]:
        """The rows, under the keys of `PackedDataset`."""
        return {
            "input_ids": torch.from_numpy(self.ids.astype(np.int64)),
            "task": torch.from_numpy(self.task),
            "document": torch.from_numpy(self.document),
            "is_target": torch.from_numpy(self.is_target),
        }


def document_sizes(
    config: SentencesConfig, manifests: Sequence[Manifest], max_images: int | None = None
) -> list[int]:
    """Number of examples in a document that fills a row, as far as there are any, of each task.

    Args:
        config, manifests, max_images: As for `delvm.data.datasets.sentences.sentence_sizes`.

    Raises:
        UserError: not even one example of a task fits, or it has none.
    """
    num_images = config.num_images
    for manifest in manifests:
        size, task = manifest.images_per_example, manifest.task
        if not manifest.count:
            raise UserError(f"task '{task}' has no examples: set 'data.task_weights={{{task}:0}}'")
        if size > num_images:
            least = max(each.images_per_example for each in manifests)
            longer = [each.task for each in manifests if each.images_per_example > num_images]
            remedies = []
            if max_images is None or least <= max_images or len(manifests) == len(longer):
                remedies.append(f"data.images_per_sentence={least}")
            if len(longer) < len(manifests):
                zeros = ",".join(f"{each}:0" for each in longer)
                remedies.append(f"'data.task_weights={{{zeros}}}'")
            raise UserError(
                f"an example of task '{task}' has {size} images, a sentence {num_images}: set "
                f"{' or '.join(remedies)}"
            )
    return [min(num_images // m.images_per_example, m.count) for m in manifests]


class PackedValidation(NamedTuple):
    """The fixed validation rows: one document each, then padding.

    Attributes:
        batch: {"input_ids": (S, T), "task", "document", "is_target": (S, K)}.
        tasks: names of all tasks that have a validation split.
    """

    batch: dict[str, Tensor]
    tasks: list[str]

    @property
    def holds_single_images(self) -> bool:
        """Whether a row may hold several documents: always."""
        return True


def packed_validation(
    config: SentencesConfig, manifests: Mapping[str, Manifest] | None = None
) -> PackedValidation:
    """The first examples of each task of the split "val" that fit, in order.

    A task with fewer examples than a row holds has one row with these, and padding.

    Args:
        config: How rows are made.
        manifests: From `validation_manifests`; None = all of the split.

    Raises:
        UserError: an example does not fit.
    """
    root, parts = as_path(config.path), []
    manifests = load_manifests(root, "val", "tokens") if manifests is None else manifests
    tasks = sorted(manifests)
    sizes = document_sizes(config, [manifests[task] for task in tasks])
    for number, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
        manifest = manifests[task]
        assert manifest.tokens_per_image is not None
        examples = first_examples(root, manifest, max(size, config.num_val_examples))
        count = len(examples) // size
        rows = PackedRows(count, config.num_images, manifest.tokens_per_image)
        for row in range(count):
            mine = examples[row * size : (row + 1) * size]
            rows.place(row, 0, mine, number, manifest.images_per_example)
        parts.append(rows.batch())
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return PackedValidation(batch, tasks)


def load_validation(
    config: SentencesConfig, train: Iterable[str], trained: Iterable[str]
) -> ValidationSentences | PackedValidation | None:
    """The validation sentences of all tasks that have any; None without a validation split.

    A task whose examples do not fill a sentence is validated on a shorter one, and one whose
    examples are longer than a sentence is left out; the log names both.

    Args:
        config: Which shards, and how sentences are made.
        train: tasks that have training shards.
        trained: those that are trained on.
    """
    manifests = validation_manifests(config, train, trained)
    for task, manifest in [*manifests.items()]:
        if (size := manifest.images_per_example) > config.num_images:
            log(
                f"validation: task '{task}' is left out, its examples have {size} images and a "
                f"sentence {config.num_images}"
            )
            del manifests[task]
    if not manifests:
        return None
    short = [task for task, m in manifests.items() if not fills_sentences(config, m)]
    if short and not config.packing:
        log(f"validation: too few examples of {', '.join(short)} for a sentence: shorter ones")
    packed = config.packing or short
    return (packed_validation if packed else validation_sentences)(config, manifests)
