"""The Lightning data modules of streams, and the positions of all streams of a run."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from delvm.data.datasets.stream_order import WindowPart, WindowSequence
from delvm.data.datasets.streaming import StreamingDataset, StreamState
from delvm.data.datasets.streaming_images import STREAM_WINDOW_SHARDS as IMAGE_WINDOW_SHARDS
from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
from delvm.data.datasets.streaming_sentences import (
    STREAM_WINDOW_SHARDS,
    StreamingSentences,
    StreamingSentencesConfig,
)
from delvm.errors import UserError
from delvm.progress import log
from delvm.training.data.datamodules import (
    ImageDataModule,
    SentenceDataModule,
    StreamDataModule,
)
from delvm.untrusted import schema_error

MAX_NUMBER = 2**48  # of examples and windows, more than any corpus in any number of epochs

# Of a position in a checkpoint, next to the table "positions".
_STATE = {
    "position": int, "order": dict, "num_workers": int, "first_worker": int, "leftovers": dict,
    "base": dict,
}  # fmt: skip


class StreamingDataModule(StreamDataModule):
    """Batches of shards that are read in sequence; for the data modules of an indexed reader.

    Checkpoints hold the position of each worker of each rank: with as many of them a run continues
    with exactly the next batches, with another number the examples that are left are dealt out
    again.
    """

    train: StreamingDataset
    indexed: str  # option of the data module that reads the same shards at random

    @property
    def num_streams(self) -> int:
        """Workers of all ranks."""
        return self._rank()[1] * self.train.num_workers

    def _set_rank(self) -> None:
        """Tell the data set which rank this is; a run that begins has no position to keep."""
        data = self.train
        data.rank, data.world_size = self._rank()
        if len(data.state.positions) != self.num_streams:
            assert not self.position
            data.state = data.begin()

    def advance(self, batch: dict[str, Any]) -> None:
        super().advance(batch)
        worker, positions = batch["stream"]
        state, workers = self.train.state, self.train.num_workers
        state.next_index, state.first_worker = self.position, (worker + 1) % workers
        state.positions[self._rank()[0] * workers + worker] = positions

    def state_dict(self) -> dict[str, Any]:
        """The positions of the streams of all ranks, and all that the order depends on."""
        self._set_rank()
        state, tasks = self.train.state, self.train.mixed_tasks
        by_task = dict(zip(tasks, state.sequences, strict=True))
        return super().state_dict() | {
            "num_workers": self.train.num_workers,
            "first_worker": state.first_worker,
            "leftovers": {
                task: [list(part) for part in each.leftovers] for task, each in by_task.items()
            },
            "base": {task: each.base for task, each in by_task.items()},
            "positions": torch.from_numpy(self._gather(state.positions)),
        }

    def _gather(self, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The positions of all streams, of which each rank knows those of its own workers."""
        rank, world_size = self._rank()
        if world_size == 1:
            return positions.copy()
        assert self.trainer is not None
        workers, strategy = self.train.num_workers, self.trainer.strategy
        mine = torch.from_numpy(positions[rank * workers : (rank + 1) * workers])
        gathered: Tensor = strategy.all_gather(mine.to(strategy.root_device))
        return gathered.cpu().reshape(positions.shape).numpy().copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue earlier streams; ranks, workers and the batch size may have changed.

        Raises:
            UserError: the streams have another order than those that were stopped.
        """
        positions = state.get("positions")
        if wrong := schema_error({k: v for k, v in state.items() if k != "positions"}, _STATE):
            raise UserError(f"the checkpoint's position in the data is damaged: {wrong}")
        super().load_state_dict({key: state[key] for key in ("position", "order")})
        data = self.train
        data.rank, data.world_size = self._rank()
        data.state = _read_state(state, positions, data.mixed_tasks)
        streams, workers = len(data.state.positions), state["num_workers"]
        if (streams, workers) == (self.num_streams, data.num_workers):
            return
        data.state = data.state.regroup(self.num_streams)
        if data.rank == 0:
            log(
                f"data: {streams // workers} ranks x {workers} workers had read it, now "
                f"{data.world_size} x {data.num_workers} do: what is left of the shards is dealt "
                "out again. No example is lost or repeated, but other examples share a batch"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        if self.overfit_batches:
            raise UserError(
                f"overfit_batches needs data that can be read again: set data={self.indexed}"
            )
        self._set_rank()
        self._report_few_windows()
        return self._loader()

    def _report_few_windows(self) -> None:
        """Log the tasks of which the streams read several epochs at the same time."""
        data = self.train
        few = {
            task: shuffle
            for task, shuffle in zip(data.mixed_tasks, data.layout.shuffles, strict=True)
            if shuffle.num_windows < self.num_streams
        }
        if not few or data.rank:
            return
        listed = ", ".join(f"{task} {each.num_windows:,}" for task, each in few.items())
        smaller = any(len(each.counts) > each.num_windows for each in few.values())
        remedy = "data.shuffle_window_shards=1" if smaller else f"data={self.indexed}"
        log(
            f"data: {self.num_streams:,} streams ({data.world_size:,} ranks x {data.num_workers} "
            f"workers) share fewer windows of shards ({listed}), so they read several epochs of "
            "them at once: in the time of one, up to 37% of the examples are not read and "
            f"others are read again; set {remedy} to read them more evenly"
        )


class StreamingSentenceDataModule(StreamingDataModule, SentenceDataModule):
    """Batches of visual sentences from shards that are read in sequence, from disk or a store.

    Nothing is kept on disk. Validation reads its few examples as `SentenceDataModule` does.
    """

    train: StreamingSentences
    config: StreamingSentencesConfig
    indexed = "sentences"
    validate = StreamingSentencesConfig.validate  # of arguments, which have the same names

    def __init__(
        self,
        path: str,
        *,
        shards: dict[str, str] | None = None,
        pairs_per_sentence: int = 4,
        images_per_sentence: int | None = None,
        task_weights: dict[str, float] | None = None,
        batch_size: int = 32,
        num_workers: int = 1,
        num_val_examples: int = 64,
        shuffle_window_shards: int = STREAM_WINDOW_SHARDS,
        packing: bool = False,
        shuffle_annotations: bool = False,
        retries: int = 3,
        timeout_s: float = 60.0,
        rejects: str | None = None,
        seed: int = 0,
    ) -> None:
        """Read the manifests and the validation sentences.

        Args:
            path: root of the token shards, a directory or a URL that fsspec knows.
            shards: task -> pattern of its shards, if they are not in ``path``, as
                ``s3://bucket/derain/{000000..000099}.tar``; None or empty = none.
            pairs_per_sentence, images_per_sentence, task_weights: as of `SentenceDataModule`.
            batch_size, num_workers, num_val_examples, packing, shuffle_annotations, seed: as of
                `SentenceDataModule`.
            shuffle_window_shards: shards of a task that a worker holds and shuffles together; with
                the window that it reads ahead, memory holds two for each task.
            retries: attempts to fetch a shard after the first one.
            timeout_s: seconds that an attempt may take in a remote store.
            rejects: file that lists the shards that failed, one JSON object a line; None = none.

        Raises:
            UserError: no token shards there, or the sentence does not fit the tasks' examples.
        """
        config = StreamingSentencesConfig(
            path=path,
            shards=shards or {},
            pairs_per_sentence=pairs_per_sentence,
            images_per_sentence=images_per_sentence,
            task_weights=task_weights or {},
            batch_size=batch_size,
            num_workers=num_workers,
            num_val_examples=num_val_examples,
            shuffle_window_shards=shuffle_window_shards,
            packing=packing,
            shuffle_annotations=shuffle_annotations,
            retries=retries,
            timeout_s=timeout_s,
            rejects=rejects,
        )
        self.start(config, StreamingSentences(config, seed))


class StreamingImageDataModule(StreamingDataModule, ImageDataModule):
    """Batches of single images from shards that are read in sequence, from disk or a store.

    Nothing is kept on disk. Validation reads its few examples as `ImageDataModule` does.
    """

    train: StreamingImages
    config: StreamingImagesConfig
    indexed = "images"
    validate = StreamingImagesConfig.validate  # of arguments, which have the same names

    def __init__(
        self,
        path: str,
        *,
        shards: dict[str, str] | None = None,
        batch_size: int = 32,
        num_workers: int = 1,
        num_val_examples: int = 16,
        shuffle_window_shards: int = IMAGE_WINDOW_SHARDS,
        retries: int = 3,
        timeout_s: float = 300.0,
        rejects: str | None = None,
        seed: int = 0,
    ) -> None:
        """Read the manifests and the validation images.

        Args:
            path: root of the image shards, a directory or a URL that fsspec knows.
            shards, retries, timeout_s: as of `StreamingSentenceDataModule`.
            batch_size, num_workers, num_val_examples, seed: as of `ImageDataModule`.
            shuffle_window_shards: shards of a task that a worker holds, as files and not as pixels,
                and shuffles together; memory holds two such windows for each task.
            rejects: file that lists the shards and the images that failed; None = none.

        Raises:
            UserError: no image shards there.
        """
        config = StreamingImagesConfig(
            path=path,
            shards=shards or {},
            batch_size=batch_size,
            num_workers=num_workers,
            num_val_examples=num_val_examples,
            shuffle_window_shards=shuffle_window_shards,
            retries=retries,
            timeout_s=timeout_s,
            rejects=rejects,
        )
        self.start(config, StreamingImages(config, seed))


def _read_state(state: dict[str, Any], positions: Any, tasks: list[str]) -> StreamState:
    """The state in a checkpoint, after a check of all its values.

    Args:
        state: of types as in `_STATE`.
        positions: its table of positions, of any type.
        tasks: of the mixture.

    Raises:
        UserError: it is damaged.
    """
    workers, part = state["num_workers"], [[int]]
    wrong = schema_error(
        {"leftovers": state["leftovers"], "base": state["base"]},
        {"leftovers": dict.fromkeys(tasks, part), "base": dict.fromkeys(tasks, int)},
    )
    is_table = isinstance(positions, Tensor) and positions.dtype == torch.int64
    is_table = is_table and (positions.layout, positions.device.type) == (torch.strided, "cpu")
    if not wrong and not (is_table and positions.shape[1:] == (len(tasks), 2)):
        wrong = "positions is not a table of integers"
    if not wrong and (len(positions) == 0 or workers < 1 or len(positions) % workers):
        wrong = f"{len(positions)} positions are not those of {workers} workers a rank"
    if not wrong and not 0 <= state["first_worker"] < workers:
        wrong = f"first_worker is {state['first_worker']}, of {workers}"
    pairs = [] if wrong else [each for task in tasks for each in state["leftovers"][task]]
    if any(len(each) != 2 for each in pairs):
        wrong = "leftovers are not pairs of numbers"
    if not wrong:
        numbers = [state["position"], *state["base"].values(), *(n for each in pairs for n in each)]
        numbers += [int(positions.min()), int(positions.max())]
        if not all(0 <= each < MAX_NUMBER for each in numbers):
            wrong = f"one of its numbers is not from 0 to {MAX_NUMBER:,}"
    if wrong:
        raise UserError(f"the checkpoint's position in the data is damaged: {wrong}")
    sequences = [
        WindowSequence(
            tuple(WindowPart(*each) for each in state["leftovers"][task]), state["base"][task]
        )
        for task in tasks
    ]
    table = positions.numpy().copy()
    return StreamState(state["position"], sequences, table, state["first_worker"])
