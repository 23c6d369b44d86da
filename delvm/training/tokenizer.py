"""LightningModule that trains the VQGAN tokenizer on pictures."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from delvm.data.codebook_usage import perplexity
from delvm.errors import UserError
from delvm.interop.weight_files import read_tensors
from delvm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss
from delvm.models.perceptual import LPIPS, MSSSIMLoss
from delvm.models.vqgan import VQGAN
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.codebook_ema import CodebookEMA
from delvm.training.config import WANTED_VGG, OptimConfig, Perceptual, TokenizerModule
from delvm.training.optim import build_optimizer


class TokenizerTraining(L.LightningModule):
    """Reconstruction, codebook and adversary on batches {"pixels": (B, 3, H, H) uint8}.

    Optimization is manual, since the codebook moves outside the gradient and the discriminator
    has an optimizer of its own (Esser et al. 2021, arXiv 2012.09841).
    """

    def __init__(self, model: VQGAN, loss: TokenizerModule, optim: OptimConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.grad_guard: SkipNonFiniteGrad | None = None
        self.model, self.loss, self.optim = model, loss, optim
        codes = model.quantize.embedding.weight
        self.codebook = CodebookEMA(codes, loss.ema_decay, loss.revive_after, loss.revive_by)
        if loss.ema_decay is not None:
            codes.requires_grad_(False)
        # In a list: the weights of a VGG16 belong to no checkpoint of the tokenizer.
        self._distance = [build_distance(loss, model.config.resolution)] if loss.perceptual else []
        self.adversary = (
            PatchDiscriminator(
                model.config.num_channels, loss.discriminator_width, loss.discriminator_layers
            )
            if loss.adversarial
            else None
        )
        # How often validation has met each code, (V,). No buffer: a moving average of the weights
        # takes the place of the buffers too while it is validated.
        self.counts = torch.zeros(len(codes), dtype=torch.long)

    def on_fit_start(self) -> None:
        for distance in self._distance:
            distance.to(self.device)

    def reconstruction(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Weighted L1 and L2 of the drawn pixels against the true ones."""
        c, error = self.loss, (drawn - pixels).float()
        weight = 1 + c.foreground * (pixels.amax(1, keepdim=True) > 0.1)
        return (weight * (c.l1 * error.abs() + c.l2 * error.square())).mean()

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        model, c, pixels = self.model, self.loss, _unit(batch)
        z = model.encode_features(pixels).float()  # (B, N, d)
        ids = model.quantize.nearest_code_indices(z.detach().flatten(0, 1))
        codes = F.embedding(ids, model.codebook).view_as(z)
        quantization = model.config.commitment_cost * F.mse_loss(z, codes.detach())
        if c.ema_decay is None:
            quantization = quantization + F.mse_loss(codes, z.detach())
        drawn = model.decode_embeddings(z + (codes - z).detach())
        terms = {"reconstruction": self.reconstruction(pixels, drawn)}
        for distance in self._distance:
            terms["perceptual"] = c.perceptual * distance(pixels, drawn)
        likeness = torch.stack(list(terms.values())).sum()
        terms["codebook"] = c.codebook * quantization
        learning = self.adversary is not None and self.global_step >= c.adversarial_start
        if learning:
            terms["adversarial"] = self.fooled(drawn, likeness)
        loss = torch.stack(list(terms.values())).sum()
        if not self.step(loss):
            return  # codes follow their features, which are no numbers either
        if learning:
            self.step_adversary(pixels, drawn.detach())
        used = self.codebook.update(z.detach().flatten(0, 1), ids)
        self.log_dict({"train/loss": loss} | {f"train/{k}": v for k, v in terms.items()})
        self.log("train/codes_used", used)
        self.log("train/codes_revived", self.codebook.num_reset.float())

    def fooled(self, drawn: Tensor, likeness: Tensor) -> Tensor:
        """The adversary's loss of drawn pictures, weighed against their likeness."""
        assert self.adversary is not None
        verdict = -self.adversary(drawn).float().mean()
        last = self.model.decoder.conv_out.weight
        weight = adaptive_weight(likeness, verdict, last)
        self.log("train/adaptive_weight", weight)
        return self.loss.adversarial * weight * verdict

    def step(self, loss: Tensor) -> bool:
        """One step of the tokenizer's optimizer and its schedule; whether it moved anything."""
        optimizer, scheduler = self._optimizers()[0], self._schedulers()[0]
        optimizer.zero_grad()
        self.manual_backward(loss)
        limit = self.optim.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        fine = self.grad_guard is None or self.grad_guard.grad_is_finite(norm, self)
        optimizer.step()
        scheduler.step()
        if self.grad_guard is not None:
            self.log("train/skipped", float(self.grad_guard.skipped))
        return fine

    def step_adversary(self, pixels: Tensor, drawn: Tensor) -> None:
        """One step of the discriminator, on real and drawn pictures."""
        assert self.adversary is not None
        # The bare optimizer: Lightning counts each step of a wrapped one as a step of training.
        optimizer = self._optimizers()[1].optimizer
        optimizer.zero_grad()  # also drops what the tokenizer's loss has left
        real, false = self.adversary(pixels).float(), self.adversary(drawn).float()
        loss = hinge_d_loss(real, false)
        self.manual_backward(loss)
        if self.grad_guard is not None:
            norm = nn.utils.get_total_norm(
                weight.grad for weight in self.adversary.parameters() if weight.grad is not None
            )
            self.grad_guard.grad_is_finite(norm, self, "adversary")
        optimizer.step()
        self._schedulers()[1].step()
        self.log_dict(
            {
                "train/discriminator": loss,
                "train/verdict_real": real.mean(),
                "train/verdict_drawn": false.mean(),
            }
        )

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros_like(self.counts, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        pixels = _unit(batch)
        ids = self.model.encode(pixels)
        self.counts += torch.bincount(ids.flatten(), minlength=len(self.counts))
        error = (self.model.decode(ids).float() - pixels).square().flatten(1).mean(1)
        psnr = (-10 * error.clamp_min(1e-6).log10()).mean()
        self.log("val/psnr", psnr, on_epoch=True, sync_dist=True)
        self.log("val/loss", error.mean(), on_epoch=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
        self.log("val/codes_used", (counts > 0).float().mean())
        self.log("val/code_perplexity", perplexity(counts))

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LRScheduler]]:
        total = int(self.trainer.max_steps)
        table = self.model.quantize.embedding.weight  # an average would pull codes to zero
        made = [build_optimizer(_groups(self.model, self.optim, table), self.optim, total)]
        if self.adversary is not None:
            made.append(build_optimizer(_groups(self.adversary, self.optim), self.optim, total))
        optimizers, schedulers = zip(*made, strict=True)
        return list(optimizers), list(schedulers)

    def _optimizers(self) -> list[LightningOptimizer]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _schedulers(self) -> list[LRScheduler]:
        found = self.lr_schedulers()
        assert found is not None
        return found if isinstance(found, list) else [found]


def _unit(batch: dict[str, Tensor]) -> Tensor:
    """The pixels of a batch (B, 3, H, H) in [0, 1]; bytes are a quarter of the way to a device."""
    return batch["pixels"].float() / 255


def _groups(
    net: nn.Module, config: OptimConfig, spared: Tensor | None = None
) -> list[dict[str, object]]:
    """Parameters with weight decay (matrices) and without (vectors, and ``spared``)."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    decay = [p for p in parameters if p.ndim >= 2 and p is not spared]
    rest = [p for p in parameters if p.ndim < 2 or p is spared]
    return [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def build_distance(config: TokenizerModule, resolution: int) -> MSSSIMLoss | LPIPS:
    """The perceptual distance of the config.

    Raises:
        UserError: LPIPS is asked for, and the weights of its VGG16 are missing or others.
    """
    if config.distance is Perceptual.ms_ssim:
        return MSSSIMLoss(resolution)
    if config.vgg_weights is None:
        raise UserError(f"module.distance=lpips needs the weights of a VGG16: {WANTED_VGG}")
    path = Path(config.vgg_weights)
    if not path.is_file():
        raise UserError(f"module.vgg_weights={path} is not there: {WANTED_VGG}")
    import torchmetrics  # its package carries the heads

    heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    try:
        return LPIPS(read_tensors(path), read_tensors(heads))
    except ValueError as error:
        raise UserError(f"module.vgg_weights={path} is no VGG16: {error}: {WANTED_VGG}") from None
