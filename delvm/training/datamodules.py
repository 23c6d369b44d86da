"""Lightning data modules over the streams of delvm.data."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from delvm import legacy
from delvm.data.datasets.images import ImageDataset, ImagesConfig, validation_images
from delvm.data.datasets.sampler import ResumableBatchSampler
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig, validation_sentences
from delvm.errors import UserError


class StreamData(L.LightningDataModule):
    """An endless training stream, whose place is one number: that of the next item.

    The place is kept in checkpoints. It counts what training has taken, not what workers have
    read ahead: whoever trains says so with `take`.
    """

    train: SentenceDataset | ImageDataset

    def __init__(self, config: SentencesConfig | ImagesConfig, overfit: int = 0) -> None:
        """Begin at the start.

        Args:
            config: of the stream.
            overfit: above 0, only the first batches, again and again.
        """
        super().__init__()
        self.config, self.overfit = config, overfit
        self.position = 0

    def take(self, batch: dict[str, Any]) -> None:
        """Count a batch of this rank as trained on, and those of the other ranks with it."""
        rank, ranks = self._rank()
        self.position = batch["next_index"] + (ranks - 1 - rank) * self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, and all that its order depends on."""
        return {"position": self.position, "order": self.train.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run was stopped; ranks, workers and the batch's size may have changed.

        Raises:
            UserError: the stream has another order than the one that was stopped.
        """
        old = legacy.rename_keys(state["order"], legacy.DATA_ORDER)
        new = self.train.order
        if odd := [f"{k} {old.get(k)} != {new[k]}" for k in new if old.get(k) != new[k]]:
            raise UserError(
                f"the checkpoint's data came in another order than data.path={self.config.path} "
                f"would now ({'; '.join(odd)}): set what has changed back, or begin a new run with "
                "the same weights by start=PATH"
            )
        self.position = state["position"]

    def _rank(self) -> tuple[int, int]:
        return (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        numbers = ResumableBatchSampler(
            self.position, self.config.batch_size, *self._rank(), overfit_batches=self.overfit
        )
        # A batch is one item of the data set, so nothing is left to collate.
        return DataLoader(
            self.train,
            batch_size=None,
            sampler=numbers,
            num_workers=self.config.num_workers,
            generator=_own(),
        )


class SentenceData(StreamData):
    """Sentences: what `Sentences` gives; tasks are numbered as in ``tasks``."""

    train: SentenceDataset

    def __init__(self, config: SentencesConfig, seed: int, overfit: int = 0) -> None:
        super().__init__(config, overfit)
        self.train = SentenceDataset(config, seed)
        self.val = validation_sentences(config)
        self.tasks = self.val.tasks

    def val_dataloader(self) -> DataLoader[Any]:
        """The same keys; each rank gets its share, as many batches as the others."""
        val, (rank, ranks) = self.val, self._rank()
        # The last ranks repeat the first sentence, as no task's, so that all do the same work.
        left = -len(val.input_ids) % ranks
        ids = torch.cat((val.input_ids, val.input_ids[:1].expand(left, -1)))
        task = torch.cat((val.task, torch.full((left,), -1)))
        pictures = torch.cat((val.images_per_example, val.images_per_example[:1].expand(left)))
        mine = TensorDataset(*(each[rank::ranks] for each in (ids, task, pictures)))
        return DataLoader(mine, self.config.batch_size, collate_fn=_sentences, generator=_own())


class PictureData(StreamData):
    """Pictures: what `Pictures` gives in training, {"pixels"} in validation."""

    train: ImageDataset

    def __init__(self, config: ImagesConfig, seed: int, overfit: int = 0) -> None:
        super().__init__(config, overfit)
        self.train = ImageDataset(config, seed)
        self.val = TensorDataset(validation_images(config))

    def shown(self, count: int = 10) -> Tensor:
        """``count`` validation pictures (count, 3, H, H) uint8, evenly over inputs and targets."""
        (pictures,) = self.val.tensors
        return pictures[torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.config.batch_size, collate_fn=_pixels, generator=_own())


def _own() -> torch.Generator:
    """A generator of a loader's own: each one draws a seed for workers, which use none.

    Drawn from torch's, it would change what a resumed run draws next.
    """
    return torch.Generator()


def _sentences(items: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    ids, task, pictures = (torch.stack(each) for each in zip(*items, strict=True))
    return {"input_ids": ids, "task": task, "images_per_example": pictures}


def _pixels(items: list[tuple[Tensor]]) -> dict[str, Tensor]:
    return {"pixels": torch.stack([item for (item,) in items])}
