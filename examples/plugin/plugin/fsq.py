"""A tokenizer without a learned codebook: finite scalar quantization (Mentzer et al. 2023)."""

import torch
from torch import Tensor, nn


class FSQTokenizer(nn.Module):
    """Each channel of a feature is rounded to a few levels; a code is one combination of them."""

    codebook: Tensor  # (V, d)
    bf16 = False
    codebook_parameter = None  # no code is learned, so there is no codebook loss
    commitment_cost = 0.0

    def __init__(self, resolution: int, patch: int, levels: list[int], dim: int = 64) -> None:
        super().__init__()
        self.resolution, self.patch = resolution, patch
        self.codebook_size = int(torch.tensor(levels).prod())
        self.tokens_per_image = (resolution // patch) ** 2
        grids = [torch.linspace(-1, 1, level) for level in levels]
        self.register_buffer("codebook", torch.cartesian_prod(*grids))
        self.encoder = nn.Sequential(
            nn.Conv2d(3, dim, patch, patch), nn.GELU(), nn.Conv2d(dim, len(levels), 1), nn.Tanh()
        )
        self.decoder = nn.Sequential(nn.Conv2d(len(levels), dim, 1), nn.GELU())
        self.to_pixels = nn.ConvTranspose2d(dim, 3, patch, patch)

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixels.weight

    def encode_features(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels).flatten(2).transpose(1, 2)  # (B, N, d)

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        return torch.cdist(z.float(), self.codebook).argmin(1)

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        side = self.resolution // self.patch
        return self.to_pixels(self.decoder(embeddings.transpose(1, 2).unflatten(2, (side, side))))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        z = self.encode_features(pixels)
        return self.nearest_code_indices(z.flatten(0, 1)).view(z.shape[:2])

    @torch.no_grad()
    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        pixels = self.decode_embeddings(self.codebook[ids]).float()
        return pixels.clamp(0, 1) if clamp else pixels
