"""What a tokenizer draws while it learns, and how its codebook is used, as pictures."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from delvm.data.images import contact_sheet, to_images
from delvm.files import atomic_path
from delvm.training.logs import log_picture
from delvm.training.tokenizer import TokenizerTraining

INK, PAPER, PALE = (46, 94, 170), (250, 250, 248), (110, 110, 110)


class DrawReconstructions(L.Callback):
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
        rows = [to_images(pixels), to_images(drawn)]
        sheet = contact_sheet(rows, cell=96, row_titles=["picture", "drawn"])
        use = draw_use(module.counts.cpu())
        step = trainer.global_step
        for name, file, picture in (
            ("reconstructions", f"{step:07d}.png", sheet),
            ("codes", f"codes_{step:07d}.png", use),
        ):
            with atomic_path(self.folder / file) as part:
                picture.save(part)
            for logger in trainer.loggers:
                log_picture(logger, f"val/{name}", picture, step)


def draw_use(counts: Tensor, size: tuple[int, int] = (640, 240)) -> Image.Image:
    """How often each code was used, codes (V,) from the most to the least used, on a log scale."""
    width, height = size
    top, left, bottom = 28, 44, 24
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    ordered = counts.sort(descending=True).values.double()
    share = ordered / counts.sum().clamp_min(1)
    used, most = int((counts > 0).sum()), float(share[0])
    title = f"{used:,} of {len(counts):,} codes used; the most frequent is {most:.1%} of tokens"
    draw.text((left, 8), title, fill=(30, 30, 30), font=font)
    floor = -6.0  # a millionth of the tokens
    across, down = width - left - 12, height - top - bottom
    places = torch.linspace(0, len(share) - 1, across).long()
    for x, value in enumerate(share[places].tolist()):
        if value > 0:
            y = down * max(0.0, 1 - torch.tensor(value).log10().item() / floor)
            draw.line((left + x, top + down - y, left + x, top + down), fill=INK)
    for exponent in (0, -2, -4, -6):
        y = top + down * exponent / floor
        draw.text((8, y - 7), f"1e{exponent}" if exponent else "1", fill=PALE, font=font)
    draw.text((left, height - 18), "codes, the most used first", fill=PALE, font=font)
    return sheet
