"""Visual sentences, packed from token shards at load time.

A sentence is a sequence of images of one task: (input, target) pairs, clips, tuples, or unrelated
single images. Which sentences come, and in which order, is a function of the seed alone
(`delvm.data.datasets.sampler`); workers and ranks only divide them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from delvm.data.datasets.annotation_order import has_annotations, shuffle_annotations
from delvm.data.datasets.sampler import (
    SHUFFLE_WINDOW_SHARDS,
    Int64,
    TaskSchedule,
    WindowedShuffle,
    loader_errors,
    mixture_weights,
    out_of_range,
    shard_signature,
    validated_tasks,
)
from delvm.data.shards.manifest import Manifest, load_manifests, load_manifests_if_any
from delvm.data.shards.random_access import MAX_OPEN_SHARDS, TokenShardReader
from delvm.data.shards.reader import read_tokens
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path


@dataclass
class SentencesConfig:
    """Batches of visual sentences from a root of token shards.

    Attributes:
        path: Root of the shards, as `delvm encode` writes it: a directory, or a URL that fsspec
            knows.
        pairs_per_sentence: Pairs in a sentence; the last one is what prompting asks for.
        images_per_sentence: The same in images, for tasks whose examples are not pairs; None =
            twice the pairs.
        task_weights: Relative weight of each task in the mixture; empty = equal weights.
        batch_size: Sentences per batch and device.
        num_workers: Worker processes that load batches; 0 = the training process.
        num_val_examples: Examples per task for validation, always the same ones.
        shuffle_window_shards: Shards of a task whose examples are shuffled together.
        packing: Whether a sentence holds documents of several tasks and lengths, see
            `delvm.data.datasets.packing`.
        shuffle_annotations: Whether the annotations of an image come in another order in each
            training sentence, the same for all of its examples; of `annotated` and `tuple`.
    """

    path: str = "outputs/shapes/tokens"
    pairs_per_sentence: int = 4
    images_per_sentence: int | None = None
    task_weights: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    num_workers: int = 0
    num_val_examples: int = 64
    shuffle_window_shards: int = SHUFFLE_WINDOW_SHARDS
    packing: bool = False
    shuffle_annotations: bool = False

    @property
    def num_images(self) -> int:
        """Images in a sentence."""
        return self.images_per_sentence or 2 * self.pairs_per_sentence

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        names = ("pairs_per_sentence", "images_per_sentence")
        return [*out_of_range(self, names, 1), *loader_errors(self)]


class SentenceDataset(Dataset[dict[str, Any]]):
    """Endless training sentences; an index is a complete batch of sentence indices.

    A batch is {"input_ids": (B, T) int64, "task": (B,) int64 id of each sentence's task,
    "images_per_example": (B,) int64 of that task, "next_index": index of the last sentence + 1}.
    """

    def __init__(
        self,
        config: SentencesConfig,
        seed: int,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> None:
        """Read the manifests of the training split.

        Args:
            config: Which shards, and how sentences are made of them.
            seed: Of the order.
            manifests: Of the training split, if they have been read already.

        Raises:
            UserError: There are no token shards, a weight is for an unknown task, all weights are
                0, or a sentence does not hold complete examples, or holds more than there are.
        """
        self.root, self.seed, self.config = as_path(config.path), seed, config
        self.manifests = dict(manifests or load_manifests(self.root, "train", "tokens"))
        self.tasks = sorted(self.manifests)
        held_out = load_manifests_if_any(self.root, "val", "tokens")
        self.mixture_weights = mixture_weights(config.task_weights, self.tasks, [*held_out])
        chosen = [self.manifests[task] for task in self.mixture_weights]
        self.examples_per_sentence = self.sentence_sizes(chosen)
        self.schedule = TaskSchedule(self.mixture_weights)
        self.shuffles = [
            WindowedShuffle(
                m.task, [shard["count"] for shard in m.shards], seed, config.shuffle_window_shards
            )
            for m in chosen
        ]
        self.readers = [
            TokenShardReader(self.root, m, MAX_OPEN_SHARDS // len(chosen)) for m in chosen
        ]
        # By position in the mixture: id among all tasks, and images per example.
        self._task_ids = np.array([self.tasks.index(task) for task in self.mixture_weights])
        self._images_per_example = np.array([manifest.images_per_example for manifest in chosen])
        self._shuffled = [config.shuffle_annotations and has_annotations(m) for m in chosen]

    def sentence_sizes(self, manifests: list[Manifest]) -> list[int]:
        """Number of examples of each task in a sentence."""
        return sentence_sizes(self.config, manifests)

    @property
    def token_layout(self) -> Manifest:
        """Any one of the manifests: all agree on the vocabulary and on tokens per image."""
        return next(iter(self.manifests.values()))

    @property
    def sentences_per_epoch(self) -> int:
        """Sentences that would hold each example of all the tasks once."""
        counts = zip(self.shuffles, self.examples_per_sentence, strict=True)
        return max(1, sum(shuffle.num_examples // size for shuffle, size in counts))

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on: a run resumes only where it is the same."""
        annotations = {"shuffle_annotations": True} if any(self._shuffled) else {}
        return annotations | {
            "seed": self.seed,
            "images_per_sentence": self.config.num_images,
            "shuffle_window_shards": self.config.shuffle_window_shards,
            "mixture_weights": dict(self.mixture_weights),
            "shards": {
                task: shard_signature(self.manifests[task]) for task in self.mixture_weights
            },
        }

    def mixture(self, next_index: int) -> dict[str, float]:
        """Fraction of each task among the sentences before this one."""
        counts = self.schedule.counts(next_index) / max(1, next_index)
        return dict(zip(self.mixture_weights, counts.tolist(), strict=True))

    def locate(self, indices: Int64) -> list[dict[str, Any]]:
        """The examples of these sentences (B,) on disk: {"task", "shard": file name, "index"}."""
        task_ids, occurrence = self.schedule(indices)
        found: list[dict[str, Any]] = []
        for task, number in zip(task_ids.tolist(), occurrence.tolist(), strict=True):
            size = self.examples_per_sentence[task]
            positions = number * size + np.arange(size)
            found += self.readers[task].describe(*self.shuffles[task](positions))
        return found

    def __getitem__(self, indices: Int64) -> dict[str, Any]:
        """The batch of the sentences with these indices (B,)."""
        assert self.token_layout.tokens_per_image is not None
        length = self.config.num_images * self.token_layout.tokens_per_image
        ids = np.empty((len(indices), length), np.uint16)
        task_ids, occurrence = self.schedule(indices)
        for task in np.unique(task_ids):
            rows, size = task_ids == task, self.examples_per_sentence[task]
            positions = (occurrence[rows, None] * size + np.arange(size)).reshape(-1)
            examples = np.empty((len(positions), length // size), np.uint16)
            self.readers[task].read(*self.shuffles[task](positions), examples)
            ids[rows] = examples.reshape(-1, length)
        return self.label(ids, task_ids, occurrence) | {"next_index": int(indices[-1]) + 1}

    def label(
        self, ids: npt.NDArray[np.uint16], task_ids: Int64, occurrence: Int64
    ) -> dict[str, Any]:
        """A batch of sentences, whose annotations are in the order that they are trained in.

        Args:
            ids: (B, T), which is modified.
            task_ids: (B,) task of each, by its position in the mixture.
            occurrence: (B,) number of each among the sentences of its task.
        """
        for row in np.flatnonzero(np.array(self._shuffled)[task_ids]).tolist():
            task, size = task_ids[row], self.examples_per_sentence[task_ids[row]]
            examples = ids[row].reshape(size, -1)
            ids[row] = self.order_annotations(task, int(occurrence[row]) * size, examples).ravel()
        return {
            # torch's uint16 can be stacked but not looked up with: cast here, in the worker.
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "task": torch.from_numpy(self._task_ids[task_ids]),
            "images_per_example": torch.from_numpy(self._images_per_example[task_ids]),
        }

    def order_annotations(
        self, task: int, first: int, examples: npt.NDArray[np.uint16]
    ) -> npt.NDArray[np.uint16]:
        """The examples (n, k * N) of a sentence, with annotations in the order of the sentence.

        Args:
            task: its position in the mixture.
            first: number of the first example in the endless sequence of the task's examples.
            examples: ids as the shards have them.
        """
        if not self._shuffled[task]:
            return examples
        name, size = self.schedule.tasks[task], int(self._images_per_example[task])
        return shuffle_annotations(examples, size, self.seed, name, first)


def sentence_sizes(
    config: SentencesConfig, manifests: Sequence[Manifest], max_images: int | None = None
) -> list[int]:
    """Number of complete examples in a sentence, of each task.

    Args:
        config: How sentences are made.
        manifests: Of the tasks.
        max_images: In the student's context, for the advice of an error; None if not known.

    Raises:
        UserError: A sentence is not a multiple of an example, or longer than all examples.
    """
    num_images = config.num_images
    bad = [m for m in manifests if not fills_sentences(config, m)]
    if not bad:
        return [num_images // manifest.images_per_example for manifest in manifests]
    task, k, count = bad[0].task, bad[0].images_per_example, bad[0].count
    if num_images % k:
        problem = f"an example of task '{task}' has {k} images, a sentence {num_images}"
    else:
        what = "pairs" if k == 2 else "examples"
        problem = f"task '{task}' has {count} {what}, a sentence {num_images // k}"
    remedies, length = [], fitting_length(manifests, num_images)
    if length and (max_images is None or length <= max_images or len(manifests) == 1):
        remedies.append(length_override(config, length))
    if all(each.count and each.images_per_example <= num_images for each in manifests):
        remedies.append("data.packing=true")
    if len(bad) < len(manifests):
        zeros = ",".join(f"{each.task}:0" for each in bad)
        remedies.append(f"'data.task_weights={{{zeros}}}'")
    if not remedies and length:  # the student needs a longer context, as its own check states
        remedies.append(length_override(config, length))
    advice = f"set {' or '.join(remedies)}" if remedies else "prepare and encode more of it"
    raise UserError(f"{problem}: {advice}")


def fills_sentences(config: SentencesConfig, manifest: Manifest) -> bool:
    """Whether a task has enough examples for a sentence, and these fill it exactly."""
    size, rest = divmod(config.num_images, manifest.images_per_example)
    return not rest and 0 < size <= manifest.count


def fitting_length(manifests: Sequence[Manifest], num_images: int) -> int | None:
    """The length of sentences next to a number of images that all these tasks can fill, or None."""
    step = math.lcm(*(each.images_per_example for each in manifests))
    most = min(each.count * each.images_per_example for each in manifests)
    shorter = min(num_images, most) // step * step
    return shorter or (step if step <= most else None)


def length_override(config: SentencesConfig, num_images: int) -> str:
    """What to set for sentences of so many images."""
    if config.images_per_sentence is None and num_images % 2 == 0:
        return f"data.pairs_per_sentence={num_images // 2}"
    return f"data.images_per_sentence={num_images}"


@dataclass(frozen=True)
class ValidationSentences:
    """The fixed validation sentences.

    Attributes:
        input_ids: (S, T) int64.
        task: (S,) id of each sentence's task: its position in `tasks`.
        images_per_example: (S,) of that task.
        tasks: Names of all tasks that have a validation split, whether trained on or held out.
    """

    input_ids: Tensor
    task: Tensor
    images_per_example: Tensor
    tasks: list[str]

    @property
    def batch(self) -> dict[str, Tensor]:
        """All of them, under the keys of a training batch."""
        names = ("input_ids", "task", "images_per_example")
        return {name: getattr(self, name) for name in names}

    @property
    def holds_single_images(self) -> bool:
        """Whether any sentence is of unrelated images."""
        return bool((self.images_per_example == 1).any())


def validation_manifests(
    config: SentencesConfig, train: Iterable[str], trained: Iterable[str]
) -> dict[str, Manifest]:
    """The manifests of the tasks that validation is over; none without a validation split.

    Args:
        config: Which shards.
        train: Tasks that have training shards.
        trained: Those that are trained on.
    """
    found = load_manifests_if_any(as_path(config.path), "val", "tokens")
    names = validated_tasks(config.task_weights, trained, train, found)
    return {task: found[task] for task in names}


def validation_sentences(
    config: SentencesConfig, manifests: Mapping[str, Manifest] | None = None
) -> ValidationSentences:
    """The first examples of each task of the split "val", packed in order.

    Examples that do not fill a task's last sentence are left out.

    Args:
        config: How sentences are made.
        manifests: From `validation_manifests`; None = all of the split.

    Raises:
        UserError: A task does not fill sentences.
    """
    root = as_path(config.path)
    manifests = load_manifests(root, "val", "tokens") if manifests is None else manifests
    tasks = sorted(manifests)
    ids: list[npt.NDArray[np.uint16]] = []
    task_ids: list[int] = []
    images_per_example: list[int] = []
    sizes = sentence_sizes(config, [manifests[task] for task in tasks])
    for number, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
        manifest = manifests[task]
        examples = first_examples(root, manifest, max(size, config.num_val_examples))
        ids.append(examples[: len(examples) // size * size].reshape(-1, size * examples.shape[1]))
        task_ids += [number] * len(ids[-1])
        images_per_example += [manifest.images_per_example] * len(ids[-1])
    return ValidationSentences(
        torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        torch.tensor(task_ids),
        torch.tensor(images_per_example),
        tasks,
    )


def first_examples(root: StoragePath, manifest: Manifest, count: int) -> npt.NDArray[np.uint16]:
    """The ids (n <= count, k * N) of the first examples of a task."""
    found: list[npt.NDArray[np.uint16]] = []
    for record in read_tokens(root, manifest.split, manifest.task, manifest):
        found.append(record.reshape(len(record), -1))
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]
