"""What a tokenizer draws while it learns, and how its codebook is used, as pictures."""

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from delvm.data.image_io import to_pil
from delvm.storage import atomic_path
from delvm.training.loggers import log_image
from delvm.training.tokenizer import TokenizerTraining
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid


class LogReconstructions(L.Callback):
    """After each validation: pictures as they are and as they are drawn, and the use of codes.

    They go to ``FOLDER/STEP.png`` and ``FOLDER/codes_STEP.png``, and to the run's loggers.
    """

    def __init__(self, pictures: Tensor, folder: Path) -> None:
        """``pictures`` (M, 3, H, H) uint8 are drawn every time."""
        self.pictures, self.folder = pictures, folder

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TokenizerTraining)
        pixels = self.pictures.to(module.device).float() / 255
        drawn = module.model.decode(module.model.encode(pixels)).float()
        rows = [to_pil(pixels), to_pil(drawn)]
        sheet = image_grid(rows, cell=96, row_titles=["picture", "drawn"])
        use = plot_code_histogram(module.counts.cpu())
        step = trainer.global_step
        for name, file, picture in (
            ("reconstructions", f"{step:07d}.png", sheet),
            ("codes", f"codes_{step:07d}.png", use),
        ):
            with atomic_path(self.folder / file) as part:
                picture.save(part)
            for logger in trainer.loggers:
                log_image(logger, f"val/{name}", picture, step)
