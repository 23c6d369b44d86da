"""Saves the config of a model with its checkpoints."""

from typing import Any

import lightning as L

from delvm.interop.save import config_dict
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN
from delvm.training.strategies import network_class


class SaveModelConfig(L.Callback):
    """Adds to each checkpoint what is needed to load its model without the config of the run.

    Of a model of another class, subclasses of ours included, only the class is named: rebuilt as
    ours it would be another function.
    """

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        model: Any = getattr(pl_module, "model", pl_module)
        kind = network_class(model)
        if kind in (VQGAN, Transformer):
            checkpoint["delvm"] = config_dict(model)
        else:
            checkpoint["delvm"] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
