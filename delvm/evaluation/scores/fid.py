"""rFID: distance between images and their reconstructions in the features of a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from delvm.errors import UserError
from delvm.tasks.metrics import to_uint8


class FeatureExtractor(nn.Module):
    """A user's feature network, from a TorchScript file.

    Its input is images (B, 3, H, H) uint8, its output features (B, F). The widely used
    ``inception-2015-12-05.pt`` has this interface, and resizes the images itself.
    """

    def __init__(self, file: str | Path, image_size: int) -> None:
        """Load the network and run it once on a black image.

        Args:
            file: TorchScript.
            image_size: H.

        Raises:
            UserError: the file is missing or not TorchScript, or does not return features.
        """
        super().__init__()
        if not Path(file).is_file():
            raise UserError(
                f"fid_features not found: {file}: set fid_features=FILE, or fid_features=null"
            )
        try:
            load: Callable[..., Any] = torch.jit.load  # untyped in torch
            self.net = load(str(file), map_location="cpu").eval()
            arguments = [argument.name for argument in self.net.forward.schema.arguments]
            # NVIDIA's file returns class logits unless it is asked for features.
            self.options: dict[str, Any] = (
                {"return_features": True} if "return_features" in arguments else {}
            )
            image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
            features = self.net(image, **self.options)
        except (RuntimeError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"fid_features {file} is not TorchScript from images "
                f"(B, 3, {image_size}, {image_size}) uint8 to features (B, F): {reason}"
            ) from None
        if not isinstance(features, Tensor) or features.ndim != 2:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise UserError(f"fid_features {file} returns {shape}, not features (1, F)")
        self.num_features = features.shape[1]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F) float32 of images (B, 3, H, H) uint8."""
        features: Tensor = self.net(images, **self.options)
        return features.float()


class ReconstructionFID:
    """Frechet distance between images and their reconstructions (Heusel et al. 2017)."""

    def __init__(self, file: str | Path, image_size: int) -> None:
        """Load the features.

        Args:
            file, image_size: As for `FeatureExtractor`.

        Raises:
            UserError: As for `FeatureExtractor`.
        """
        extractor = FeatureExtractor(file, image_size)
        self.num_features = extractor.num_features
        self.distance = FrechetInceptionDistance(extractor)
        self.num_images = 0

    def update(self, pixels: Tensor, reconstructions: Tensor) -> None:
        """Add images and their reconstructions, pixels (B, 3, H, H) in [0, 1]."""
        for batch, real in ((pixels, True), (reconstructions, False)):
            images = torch.from_numpy(to_uint8(batch)).permute(0, 3, 1, 2).contiguous()
            self.distance.update(images, real=real)
        self.num_images += len(pixels)

    def as_dict(self) -> dict[str, float | int]:
        """The distance over all images so far (at least two), and the numbers behind it."""
        value = float(self.distance.compute())
        return {"value": value, "num_images": self.num_images, "num_features": self.num_features}
