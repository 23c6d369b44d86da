"""Counts the batches that were trained on, so that a resumed run continues with the next one."""

from typing import Any

import lightning as L


class TrackDataPosition(L.Callback):
    """Calls ``advance(batch)`` of the data module after each training batch, if it has one.

    Listed before callbacks that write checkpoints, which hold the position.
    """

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        advance = getattr(getattr(trainer, "datamodule", None), "advance", None)
        if advance is not None:
            advance(batch)
