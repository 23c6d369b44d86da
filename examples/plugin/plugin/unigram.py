"""A LightningModule of its own: how often each code comes, the simplest model of sentences."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnigramModule(L.LightningModule):
    """Predicts every token from code frequencies alone: a baseline for ``val/loss``."""

    def __init__(self, vocab_size: int, optimizer: Any) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(vocab_size))
        self.optimizer = optimizer

    def loss(self, input_ids: Tensor) -> Tensor:
        return F.nll_loss(
            self.logits.log_softmax(0).expand(input_ids.numel(), -1), input_ids.flatten()
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch["input_ids"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch["input_ids"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())
