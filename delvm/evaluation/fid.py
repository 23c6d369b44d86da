"""rFID: how far the pictures of a tokenizer lie from true ones in the features of a network."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from delvm.errors import UserError
from delvm.tasks.metrics import to_uint8


class Extractor(nn.Module):
    """A user's feature network, from a TorchScript file.

    It is given pictures (B, 3, H, H) uint8 and returns features (B, F), as the widely used
    ``inception-2015-12-05.pt`` does, which scales the pictures itself.
    """

    def __init__(self, file: Path, side: int) -> None:
        """Open the file and try it on one picture of that side.

        Raises:
            UserError: not there, no TorchScript, or it does not give features.
        """
        super().__init__()
        if not file.is_file():
            raise UserError(f"extractor not found: {file}: set extractor=FILE, or extractor=null")
        try:
            self.net = torch.jit.load(str(file), map_location="cpu").eval()
            asks = [argument.name for argument in self.net.forward.schema.arguments]
            # NVIDIA's file answers with classes unless it is asked for features.
            self.options: dict[str, Any] = (
                {"return_features": True} if "return_features" in asks else {}
            )
            features = self.net(torch.zeros(1, 3, side, side, dtype=torch.uint8), **self.options)
        except (RuntimeError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"extractor {file} is no TorchScript of pictures (B, 3, {side}, {side}) uint8 to "
                f"features (B, F): {reason}"
            ) from None
        if not isinstance(features, Tensor) or features.ndim != 2:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise UserError(f"extractor {file} gives {shape}, not features (1, F)")
        self.num_features = features.shape[1]

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.net(pictures, **self.options)
        return features.float()


class RFID:
    """The Frechet distance between true pictures and the same ones drawn (Heusel et al. 2017)."""

    def __init__(self, file: Path, side: int) -> None:
        extractor = Extractor(file, side)
        self.features = extractor.num_features
        self.distance = FrechetInceptionDistance(extractor)
        self.pictures = 0

    def add(self, pixels: Tensor, drawn: Tensor) -> None:
        """Count pixels (B, 3, H, H) in [0, 1], true and drawn."""
        for each, real in ((pixels, True), (drawn, False)):
            pictures = torch.from_numpy(to_uint8(each)).permute(0, 3, 1, 2).contiguous()
            self.distance.update(pictures, real=real)
        self.pictures += len(pixels)

    def as_dict(self) -> dict[str, float | int]:
        """The distance over all pictures so far, at least two, and what it rests on."""
        value = float(self.distance.compute())
        return {"value": value, "pictures": self.pictures, "features": self.features}
