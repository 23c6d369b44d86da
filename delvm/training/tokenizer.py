"""LightningModule that trains the VQGAN tokenizer on pictures."""

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)

from delvm.models.vqgan import VQGAN
from delvm.training.codebook import Codebook
from delvm.training.config import OptimConfig, TokenizerModule
from delvm.training.schedule import build_optimizer


class TokenizerTraining(L.LightningModule):
    """Reconstruction and codebook training on batches of pixels (B, 3, H, H) in [0, 1].

    Optimization is manual, since the codebook moves outside the gradient and an adversary has an
    optimizer of its own.
    """

    def __init__(self, model: VQGAN, loss: TokenizerModule, optim: OptimConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.optim = model, loss, optim
        self.codebook = Codebook(model.codebook, loss.ema_decay, loss.revive_after)
        if loss.ema_decay is not None:
            model.codebook.requires_grad_(False)
        # MS-SSIM halves the picture between scales: take as many as fit its 7-pixel window
        scales = 1
        while scales < 5 and model.config.resolution // 2**scales >= 8:
            scales += 1
        betas = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
        self.betas = tuple((betas / betas.sum()).tolist())

    def perceptual(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """1 - MS-SSIM (Wang et al. 2003), in float32."""
        return 1 - ms_ssim(
            drawn.float().clamp(0, 1), pixels, kernel_size=7, sigma=1.0, data_range=1.0,
            betas=self.betas, normalize="relu",
        )  # fmt: skip

    def reconstruction(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Weighted L1 and L2 of the drawn pixels against the true ones."""
        c, error = self.loss, (drawn - pixels).float()
        weight = 1 + c.foreground * (pixels.amax(1, keepdim=True) > 0.1)
        return (weight * (c.l1 * error.abs() + c.l2 * error.square())).mean()

    def training_step(self, pixels: Tensor, index: int) -> None:
        model, c = self.model, self.loss
        z = model.features(pixels).float()  # (B, N, d)
        ids = model.quantize.search(z.detach().flatten(0, 1))
        codes = F.embedding(ids, model.codebook).view_as(z)
        commitment = F.mse_loss(z, codes.detach())
        quantization = model.config.commitment_cost * commitment
        if c.ema_decay is None:
            quantization = quantization + F.mse_loss(codes, z.detach())
        drawn = model.render(z + (codes - z).detach())
        terms = {"reconstruction": self.reconstruction(pixels, drawn)}
        if c.perceptual:
            terms["perceptual"] = c.perceptual * self.perceptual(pixels, drawn)
        terms["codebook"] = c.codebook * quantization
        loss = torch.stack(list(terms.values())).sum()
        self.step(loss)
        used = self.codebook.update(z.detach().flatten(0, 1), ids)
        self.log_dict({"train/loss": loss} | {f"train/{k}": v for k, v in terms.items()})
        self.log("train/codes_used", used, prog_bar=True)

    def step(self, loss: Tensor) -> None:
        """One step of the optimizer and its schedule."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer) and isinstance(scheduler, LRScheduler)
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.optim.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        optimizer.step()
        scheduler.step()

    def validation_step(self, pixels: Tensor, index: int) -> None:
        ids = self.model.encode(pixels)
        error = (self.model.decode(ids).float() - pixels).square().flatten(1).mean(1)
        self.log(
            "val/psnr", (-10 * error.clamp_min(1e-6).log10()).mean(), on_epoch=True, sync_dist=True
        )
        self.log("val/loss", error.mean(), on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim >= 2 and p is not self.model.codebook]
        rest = [p for p in parameters if p.ndim < 2 or p is self.model.codebook]
        groups: list[dict[str, object]] = [
            {"params": decay, "weight_decay": self.optim.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimizer(groups, self.optim, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
