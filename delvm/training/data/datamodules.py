"""Lightning data modules over the datasets of `delvm.data`."""

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from delvm.data.datasets.images import ImageDataset, ImagesConfig, validation_images
from delvm.data.datasets.packing import PackedDataset, load_validation
from delvm.data.datasets.sampler import SHUFFLE_WINDOW_SHARDS, ResumableBatchSampler
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.datasets.streaming import StreamingDataset
from delvm.data.datasets.streaming_images import StreamingImages
from delvm.data.datasets.streaming_sentences import StreamingSentences
from delvm.data.shards.codebook import read_codebook
from delvm.errors import UserError, missing_members
from delvm.legacy import DATA_ORDER, rename_keys
from delvm.storage import as_path
from delvm.untrusted import schema_error


@runtime_checkable
class SentenceData(Protocol):
    """What a data module must offer to train a student, besides Lightning's own methods.

    Attributes:
        path: where the ids come from, for messages.
        tokens_per_image: N.
        sentence_length: tokens in a sentence, T.
        tasks: names of the validation tasks, in the order of the numbers in ``batch["task"]``.
        train_tasks: those over which ``val/loss`` is taken.
        is_packed: whether any sentence holds several documents.
        codebook: (V, d) float32, the tokenizer's.
        tokenizer_fingerprint: of the tokenizer that made the ids.
    """

    path: str
    tokens_per_image: int
    sentence_length: int
    tasks: list[str]
    train_tasks: list[str]
    is_packed: bool
    codebook: Tensor
    tokenizer_fingerprint: str


@runtime_checkable
class ImageData(Protocol):
    """What a data module must offer to train a tokenizer, besides Lightning's own methods.

    Attributes:
        path: where the images come from, for messages.
        image_size: side of the images in pixels, H.
    """

    path: str
    image_size: int


def check_data(data: object, protocol: type, module: str) -> None:
    """Refuse a data module without the attributes that a module trains from.

    Raises:
        UserError: it is for another module, or lacks attributes; all are named.
    """
    if missing := missing_members(data, protocol):
        name, options = protocol.__name__, {"SentenceData": "sentences", "ImageData": "images"}
        raise UserError(
            f"data {type(data).__name__} has no {', '.join(missing)}, which {module} reads "
            f"(delvm.training.data.datamodules.{name}): set data={options[name]}"
        )


class StreamDataModule(L.LightningDataModule):
    """An endless training stream, whose position is one number: that of the next item.

    Checkpoints keep the position. It counts what training has consumed, not what workers have
    prefetched: the callback `TrackDataPosition` calls `advance` after each batch.
    """

    train: SentenceDataset | ImageDataset | StreamingDataset
    val: Any  # None without a validation split

    def __init__(self, config: SentencesConfig | ImagesConfig) -> None:
        """Start at the first item of ``config``'s stream."""
        super().__init__()
        self.config, self.path = config, config.path
        self.overfit_batches = 0  # above 0, only the first batches, again and again
        self.position = 0

    def advance(self, batch: dict[str, Any]) -> None:
        """Count a batch of this rank, and those of the other ranks with it, as trained on."""
        rank, world_size = self._rank()
        self.position = batch["next_index"] + (world_size - 1 - rank) * self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        """The stream's position, and all that its order depends on."""
        return {"position": self.position, "order": self.train.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an earlier stream; ranks, workers and the batch size may have changed.

        Raises:
            UserError: the stream has another order than the one that was stopped.
        """
        if wrong := schema_error(state, {"position": int, "order": dict}):
            raise UserError(f"the checkpoint's position in the data is damaged: {wrong}")
        old, new = rename_keys(state["order"], DATA_ORDER), self.train.order
        if mismatched := [f"{k} {old.get(k)} != {new[k]}" for k in new if old.get(k) != new[k]]:
            raise UserError(
                f"the checkpoint's data came in another order than data.path={self.path} "
                f"would now ({'; '.join(mismatched)}): set what has changed back, or begin a new "
                "run with the same weights by init_from=PATH"
            )
        self.position = state["position"]

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _on_gpu(self) -> bool:
        """Whether batches are copied to a GPU, which waits for nobody from pinned memory."""
        trainer = self.trainer
        return trainer is not None and trainer.strategy.root_device.type == "cuda"

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = ResumableBatchSampler(
            self.position,
            self.config.batch_size,
            *self._rank(),
            overfit_batches=self.overfit_batches,
        )
        return self._loader(sampler)

    def _loader(self, sampler: ResumableBatchSampler | None = None) -> DataLoader[Any]:
        """Of the training batches: those that a sampler lists, or all of an endless stream."""
        # A batch is one item of the dataset, so nothing is left to collate.
        return DataLoader(
            self.train,
            batch_size=None,
            sampler=sampler,
            num_workers=self.config.num_workers,
            pin_memory=self._on_gpu(),
            generator=worker_generator(),
        )


class SentenceDataModule(StreamDataModule):
    """Batches of visual sentences, as `SentenceDataset` packs them from token shards."""

    train: SentenceDataset | StreamingSentences
    validate = SentencesConfig.validate  # of arguments, which have the same names

    def __init__(
        self,
        path: str,
        *,
        pairs_per_sentence: int = 4,
        images_per_sentence: int | None = None,
        task_weights: dict[str, float] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        num_val_examples: int = 64,
        shuffle_window_shards: int = SHUFFLE_WINDOW_SHARDS,
        packing: bool = False,
        shuffle_annotations: bool = False,
        seed: int = 0,
    ) -> None:
        """Read the manifests and the validation sentences.

        Args:
            path: root of the token shards, a directory or a URL that fsspec knows.
            pairs_per_sentence: pairs in a sentence; the last one is what prompting asks for.
            images_per_sentence: the same in images, for clips and tuples; None = twice the pairs.
            task_weights: task -> weight among the sentences; None or empty weighs all alike.
            batch_size: sentences per batch and device.
            num_workers: processes that read.
            num_val_examples: examples per task that validation uses, always the same ones.
            shuffle_window_shards: shards of a task among whose examples is shuffled.
            packing: fill each sentence with documents of several tasks and of any lengths, which
                do not attend to each other; without it a sentence is of one task.
            shuffle_annotations: the annotations of an image (tasks `annotated` and `tuple`) come in
                another order in each training sentence, the same for all of its examples.
            seed: of the order.

        Raises:
            UserError: no token shards there, or the sentence does not fit the tasks' examples.
        """
        config = SentencesConfig(
            path=path,
            pairs_per_sentence=pairs_per_sentence,
            images_per_sentence=images_per_sentence,
            task_weights=task_weights or {},
            batch_size=batch_size,
            num_workers=num_workers,
            num_val_examples=num_val_examples,
            shuffle_window_shards=shuffle_window_shards,
            packing=packing,
            shuffle_annotations=shuffle_annotations,
        )
        self.start(config, (PackedDataset if packing else SentenceDataset)(config, seed))

    def start(self, config: SentencesConfig, train: SentenceDataset | StreamingSentences) -> None:
        """Read the validation sentences; the rest of what `__init__` does.

        Args:
            config: of the data.
            train: its training sentences.
        """
        StreamDataModule.__init__(self, config)
        self.train = train
        self.train_tasks = list(self.train.mixture_weights)
        self.val = load_validation(config, self.train.tasks, self.train_tasks)
        self.tasks = [] if self.val is None else self.val.tasks
        layout = self.train.token_layout
        assert layout.tokens_per_image is not None  # of token shards it never is
        self.tokens_per_image = layout.tokens_per_image
        self.sentence_length = config.num_images * self.tokens_per_image
        kinds = [manifest.images_per_example for manifest in self.train.manifests.values()]
        singles = self.val is not None and self.val.holds_single_images
        self.is_packed = config.packing or 1 in kinds or singles

    @cached_property
    def _codebook(self) -> tuple[Tensor, str]:
        return read_codebook(as_path(self.path))

    @property
    def codebook(self) -> Tensor:
        """(V, d), the codebook of the tokenizer that made the ids."""
        return self._codebook[0]

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of that tokenizer."""
        return self._codebook[1]

    @property
    def resize(self) -> str:
        """How the images were made square; "" if no source did, if it is unknown, or they differ.

        A student records it, so that its prompts are made square in the same way.
        """
        modes = {manifest.resize for manifest in self.train.manifests.values()} - {""}
        return modes.pop() if len(modes) == 1 else ""

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same keys as in training; each rank gets its part, as many batches as the others."""
        if self.val is None:
            return []
        rank, world_size = self._rank()
        count = len(self.val.batch["input_ids"])
        # The last ranks repeat the first sentence without a task, so that all do the same work.
        padded = torch.arange(-(-count // world_size) * world_size)
        batch = {name: values[padded % count] for name, values in self.val.batch.items()}
        batch["task"][padded >= count] = -1
        of_rank = [{name: batch[name][i] for name in batch} for i in padded[rank::world_size]]
        loader: DataLoader[Any] = DataLoader(
            of_rank,  # type: ignore[arg-type]
            self.config.batch_size,
            pin_memory=self._on_gpu(),
            generator=worker_generator(),
        )
        return loader


class ImageDataModule(StreamDataModule):
    """Batches of single images, as `ImageDataset` reads them from image shards."""

    train: ImageDataset | StreamingImages
    validate = ImagesConfig.validate  # of arguments, which have the same names

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        num_val_examples: int = 16,
        shuffle_window_shards: int = SHUFFLE_WINDOW_SHARDS,
        seed: int = 0,
    ) -> None:
        """Read the manifests and the validation images.

        Args:
            path: root of the image shards, a directory or a URL that fsspec knows.
            batch_size: images per batch and device.
            num_workers, num_val_examples, shuffle_window_shards, seed: as of `SentenceDataModule`.

        Raises:
            UserError: no image shards there.
        """
        config = ImagesConfig(
            path=path,
            batch_size=batch_size,
            num_workers=num_workers,
            num_val_examples=num_val_examples,
            shuffle_window_shards=shuffle_window_shards,
        )
        self.start(config, ImageDataset(config, seed))

    def start(self, config: ImagesConfig, train: ImageDataset | StreamingImages) -> None:
        """Read the validation images; the rest of what `__init__` does.

        Args:
            config: of the data.
            train: its training images.
        """
        StreamDataModule.__init__(self, config)
        self.train = train
        images = validation_images(config)
        self.val = None if images is None else TensorDataset(images)
        self.image_size = self.train.image_size

    def preview_images(self, count: int = 10) -> Tensor:
        """Validation images (count, 3, H, H) uint8, evenly spread over inputs and targets."""
        assert self.val is not None  # it is called after a validation
        images: Tensor = self.val.tensors[0]
        return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val is None:
            return []
        return DataLoader(
            self.val,
            self.config.batch_size,
            collate_fn=_collate_images,
            pin_memory=self._on_gpu(),
            generator=worker_generator(),
        )


def worker_generator() -> torch.Generator:
    """A loader's own generator: each loader draws a seed for its workers, which use none.

    From torch's global generator, that seed would change the random numbers of a resumed run.
    """
    return torch.Generator()


def _collate_images(items: list[tuple[Tensor]]) -> dict[str, Tensor]:
    return {"pixels": torch.stack([item for (item,) in items])}
