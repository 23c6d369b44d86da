"""The config of a model, saved with its checkpoints."""

from typing import Any

import lightning as L


class SaveModelConfig(L.Callback):
    """Puts into each checkpoint what is needed to load its model without the run's config."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["delvm"] = self.description
