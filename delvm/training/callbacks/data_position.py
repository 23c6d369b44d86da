"""Counts what has been trained on, so that a resumed run reads on from there."""

from typing import Any

import lightning as L

from delvm.training.datamodules import StreamData


class TrackDataPosition(L.Callback):
    """Tells the data what has been trained on, which is where a resumed run goes on.

    Listed before whatever writes checkpoints.
    """

    def __init__(self, data: StreamData) -> None:
        self.data = data

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.data.take(batch)
