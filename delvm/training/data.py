"""Lightning data modules over the streams of delvm.data."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from delvm.data.pictures import Pictures, PicturesConfig, validation_pictures
from delvm.data.sentences import Sentences, SentencesConfig, validation_sentences


class SentenceData(L.LightningDataModule):
    """Batches {"ids": (B, T) int64, "task": (B,) int64}; tasks are numbered as in ``tasks``."""

    def __init__(self, config: SentencesConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.train = Sentences(config, seed)
        ids, numbers, self.tasks = validation_sentences(config)
        self.val = TensorDataset(ids, numbers)

    def train_dataloader(self) -> DataLoader[Any]:
        return _loader(self.train, self.config, self.trainer, _sentences)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.config.batch_size, collate_fn=_sentences)


class PictureData(L.LightningDataModule):
    """Batches of pixels (B, 3, H, H) float32 in [0, 1]."""

    def __init__(self, config: PicturesConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.train = Pictures(config, seed)
        self.val = TensorDataset(validation_pictures(config))

    def shown(self, count: int = 10) -> Tensor:
        """``count`` validation pictures (count, 3, H, H) uint8, evenly over inputs and targets."""
        (pictures,) = self.val.tensors
        return pictures[torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()]

    def train_dataloader(self) -> DataLoader[Any]:
        return _loader(self.train, self.config, self.trainer, _pixels)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.config.batch_size, collate_fn=_first_pixels)


def _loader(
    dataset: Any, config: SentencesConfig | PicturesConfig, trainer: L.Trainer | None, collate: Any
) -> DataLoader[Any]:
    if trainer is not None:
        dataset.rank, dataset.ranks = trainer.global_rank, trainer.world_size
    return DataLoader(
        dataset, config.batch_size, num_workers=config.workers, collate_fn=collate, drop_last=True
    )


def _sentences(items: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
    ids, numbers = zip(*items, strict=True)
    return {"ids": torch.stack(ids), "task": torch.tensor([int(n) for n in numbers])}


def _first_pixels(items: list[tuple[Tensor]]) -> Tensor:
    return _pixels([item for (item,) in items])


def _pixels(items: list[Tensor]) -> Tensor:
    return torch.stack(items).float() / 255
