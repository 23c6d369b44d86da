"""Logs images of a tokenizer's reconstructions and of its codebook usage."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from delvm.data.image_io import to_pil
from delvm.storage import atomic_path
from delvm.training.loggers import log_image
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid


class LogReconstructions(L.Callback):
    """After each validation: the same images with their reconstructions, and a code histogram.

    They go to ``images/STEP.png`` and ``images/codes_STEP.png`` in the run's directory, and to the
    loggers. The images are those of the data module's ``preview_images()``, (M, 3, H, H) uint8;
    nothing is done without it, or for a module whose model does not encode and decode images.
    """

    @rank_zero_only
    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        preview = getattr(getattr(trainer, "datamodule", None), "preview_images", None)
        model: Any = getattr(pl_module, "model", None)
        is_tokenizer = hasattr(model, "encode") and hasattr(model, "decode")
        skipped = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if preview is None or skipped or not is_tokenizer:
            return
        pixels: Tensor = preview().to(pl_module.device).float() / 255
        decoded = model.decode(model.encode(pixels)).float()
        rows = [to_pil(pixels), to_pil(decoded)]
        images = {"reconstructions": image_grid(rows, cell=96, row_titles=["input", "output"])}
        if (counts := getattr(pl_module, "code_counts", None)) is not None:
            images["codes"] = plot_code_histogram(counts.cpu())
        step = trainer.global_step
        for name, image in images.items():
            prefix = "" if name == "reconstructions" else f"{name}_"
            directory = Path(trainer.default_root_dir) / "images"
            with atomic_path(directory / f"{prefix}{step:07d}.png") as tmp:
                image.save(tmp)
            for logger in trainer.loggers:
                log_image(logger, f"val/{name}", image, step)
