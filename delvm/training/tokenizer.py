"""LightningModule that trains a VQGAN tokenizer on images."""

from enum import Enum
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from delvm.data.codebook_usage import perplexity
from delvm.errors import UserError
from delvm.interop.lpips_file import VGG16, load_lpips
from delvm.models.discriminator import (
    DiscriminatorNorm,
    PatchDiscriminator,
    adaptive_weight,
    hinge_d_loss,
)
from delvm.models.perceptual import LPIPS, MSSSIMLoss
from delvm.models.protocols import TokenizerNet, check_protocol
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.codebook_ema import CodebookEMA, DeadCodeReset
from delvm.training.data.datamodules import ImageData, check_data
from delvm.training.optim import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
    refuse_plateau,
)

VGG_HINT = f"set module.vgg_weights=PATH to {VGG16}, or module.perceptual_loss=ms_ssim"


def trainer_errors(precision: str, batches: int, disc_weight: float | None) -> list[str]:
    """Errors of a trainer's settings that a tokenizer cannot be trained with, one line each.

    Args:
        precision: of the trainer.
        batches: per optimizer step, ``accumulate_grad_batches``.
        disc_weight: of the discriminator's loss; None or 0 is none.
    """
    errors = []
    if precision == "bf16-true":
        errors.append(
            "trainer.precision=bf16-true and module=tokenizer, whose images and codes are "
            "float32: set trainer.precision=bf16-mixed"
        )
    if batches != 1:
        errors.append(
            f"trainer.accumulate_grad_batches={batches} and module=tokenizer, which does without: "
            "set trainer.accumulate_grad_batches=1"
        )
    if disc_weight and precision == "16-mixed":
        errors.append(
            "trainer.precision=16-mixed cannot take two gradients of one image, as "
            f"module.disc_weight={disc_weight} does: set trainer.precision=bf16-mixed or "
            "module.disc_weight=0"
        )
    return errors


class PerceptualLoss(Enum):
    """Which perceptual distance: ``lpips`` needs the weights of a VGG16, ``ms_ssim`` nothing."""

    ms_ssim = "ms_ssim"
    lpips = "lpips"


class BetaOn(Enum):
    """Which of the two codebook losses ``commitment_cost`` (beta) weighs, where the other has 1.

    ``features``: the distance that features are pulled by, as in VQ-VAE (van den Oord et al. 2017,
    eq. 3). ``codes``: the one that codes are pulled by, as in the released code of
    taming-transformers, which kept that exchange for its published models.
    """

    features = "features"
    codes = "codes"


class TokenizerModule(L.LightningModule):
    """Reconstruction, codebook and adversarial losses on {"pixels": (B, 3, H, H) uint8}.

    Optimization is manual, since the codebook is updated outside of the gradient and the
    discriminator has an optimizer of its own (Esser et al. 2021, arXiv 2012.09841).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        l1_weight: float = 1.0,
        l2_weight: float = 1.0,
        foreground_weight: float = 0.0,
        perceptual_weight: float = 0.1,
        perceptual_loss: PerceptualLoss = PerceptualLoss.ms_ssim,
        vgg_weights: str | None = None,
        disc_weight: float = 0.0,
        disc_start: int = 2000,
        disc_dim: int = 64,
        disc_num_layers: int = 3,
        disc_norm: DiscriminatorNorm = DiscriminatorNorm.group,
        codebook_weight: float = 1.0,
        beta_on: BetaOn = BetaOn.features,
        codebook_ema_decay: float | None = 0.99,
        dead_code_after: int | None = 100,
        dead_code_reset: DeadCodeReset = DeadCodeReset.random,
        gradient_clip_val: float | None = None,
    ) -> None:
        """
        Args:
            model: the tokenizer: `VQGAN`, or any `delvm.models.TokenizerNet`. If its
                ``codebook_parameter`` is None (FSQ), there are no averages and no dead codes.
            optimizer, scheduler: factories, see `delvm.training.optim`.
            l1_weight, l2_weight: of the mean absolute and squared error, pixels in [0, 1].
            foreground_weight: extra weight of pixels that are not black, or thin lines vanish.
            perceptual_weight: of the perceptual distance; 0 leaves it out.
            perceptual_loss: which distance.
            vgg_weights: file with VGG16's weights under torchvision's names, for lpips.
            disc_weight: of the generator loss, times the adaptive weight; 0 = no discriminator.
            disc_start: step from which the discriminator is trained and its loss counts.
            disc_dim, disc_num_layers, disc_norm: its first channels, number of halvings, and norms.
            codebook_weight: of the codebook and commitment losses.
            beta_on: which of them ``commitment_cost`` weighs, where codes are trained by gradient.
            codebook_ema_decay: of the codes' moving averages; None trains codes by gradient.
            dead_code_after: unused steps after which a code is moved onto a feature; None never.
            dead_code_reset: which feature: a random one, or sampled by quantization error.
            gradient_clip_val: largest gradient norm; None does not clip.
        """
        super().__init__()
        self.automatic_optimization = False
        self.grad_guard: SkipNonFiniteGrad | None = None
        self.model: Any = cast(Any, model)  # a `TokenizerNet`
        self.optimizer, self.scheduler = optimizer, scheduler
        self.l1_weight, self.l2_weight = l1_weight, l2_weight
        self.foreground_weight, self.perceptual_weight = foreground_weight, perceptual_weight
        self.perceptual_loss, self.vgg_weights = perceptual_loss, vgg_weights
        self.disc_weight, self.disc_start = disc_weight, disc_start
        self.disc_dim, self.disc_num_layers = disc_dim, disc_num_layers
        self.disc_norm, self.beta_on = DiscriminatorNorm(disc_norm), BetaOn(beta_on)
        self.codebook_weight, self.codebook_ema_decay = codebook_weight, codebook_ema_decay
        self.dead_code_after, self.dead_code_reset = dead_code_after, dead_code_reset
        self.gradient_clip_val = gradient_clip_val
        check_protocol(model, TokenizerNet, "tokenizer.net")
        self._build_parts()

    def _build_parts(self) -> None:
        """Build the codebook's moving averages, the perceptual loss and the discriminator."""
        codes: nn.Parameter | None = self.model.codebook_parameter
        self.codebook: CodebookEMA | None = None
        if codes is not None:
            self.codebook = CodebookEMA(
                codes, self.codebook_ema_decay, self.dead_code_after, self.dead_code_reset
            )
            if self.codebook_ema_decay is not None:
                codes.requires_grad_(False)
        # In a list: the weights of a VGG16 do not belong into the tokenizer's checkpoints.
        self._perceptual = (
            [build_perceptual_loss(self.perceptual_loss, self.vgg_weights, self.model.resolution)]
            if self.perceptual_weight
            else []
        )
        self.discriminator = (
            PatchDiscriminator(3, self.disc_dim, self.disc_num_layers, self.disc_norm)
            if self.disc_weight
            else None
        )
        # How often validation has met each code, (V,). Not a buffer, since a moving average of the
        # weights replaces buffers too during validation.
        self.code_counts = torch.zeros(self.model.codebook_size, dtype=torch.long)

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = [
            f"{name}={value} is below 0: set it to 0 or more"
            for name in (
                "l1_weight",
                "l2_weight",
                "foreground_weight",
                "perceptual_weight",
                "disc_weight",
                "disc_start",
                "codebook_weight",
            )  # fmt: skip
            if (value := getattr(self, name)) < 0
        ]
        errors += [
            f"{name}={value} is below 1: set it to 1 or more"
            for name in ("dead_code_after", "disc_dim", "disc_num_layers")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if (decay := self.codebook_ema_decay) is not None and not 0 <= decay < 1:
            errors.append(f"codebook_ema_decay={decay} is not in [0, 1): set it to 0.99 or null")
        if (limit := self.gradient_clip_val) is not None and limit <= 0:
            errors.append(f"gradient_clip_val={limit} is not above 0: set it to 1.0 or null")
        if self.beta_on is BetaOn.codes and self.codebook_ema_decay is not None:
            errors.append(
                "beta_on=codes is for codes that are trained by gradient: set "
                "codebook_ema_decay=null or beta_on=features"
            )
        lpips = self.perceptual_weight and self.perceptual_loss is PerceptualLoss.lpips
        if lpips and self.vgg_weights is None:
            errors.append(f"perceptual_loss=lpips needs vgg_weights: {VGG_HINT}")
        return errors

    def connect_data(self, data: Any) -> None:
        """Check that the data module's images fit.

        Raises:
            UserError: they do not, or the data module does not have images.
        """
        check_data(data, ImageData, "module=tokenizer")
        if (size := data.image_size) != self.model.resolution:
            raise UserError(
                f"image size {size} ({data.path}) != resolution {self.model.resolution} "
                f"(tokenizer): set tokenizer.net.resolution={size}"
            )

    def setup(self, stage: str) -> None:
        self.connect_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        for distance in self._perceptual:
            distance.to(self.device)

    def reconstruction(self, pixels: Tensor, reconstructions: Tensor) -> Tensor:
        """Weighted L1 and L2 of the reconstructed pixels."""
        error = (reconstructions - pixels).float()
        weight = 1 + self.foreground_weight * (pixels.amax(1, keepdim=True) > 0.1)
        return (weight * (self.l1_weight * error.abs() + self.l2_weight * error.square())).mean()

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize features z (B, N, d) with a straight-through gradient.

        Returns:
            code vectors (B, N, d), their indices (B * N,), and the codebook loss ().
        """
        indices = self.model.nearest_code_indices(z.detach().flatten(0, 1))
        codes = F.embedding(indices, self.model.codebook).view_as(z)
        beta, commitment = self.model.commitment_cost, F.mse_loss(z, codes.detach())
        if self.codebook is None or self.codebook_ema_decay is not None:
            loss = beta * commitment
        elif self.beta_on is BetaOn.features:
            loss = beta * commitment + F.mse_loss(codes, z.detach())
        else:
            loss = commitment + beta * F.mse_loss(codes, z.detach())
        return z + (codes - z).detach(), indices, loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pixels = _to_float(batch)
        z = self.model.encode_features(pixels).float()  # (B, N, d)
        embeddings, indices, quantization = self.quantize(z)
        reconstructions = self.model.decode_embeddings(embeddings)
        terms = {"reconstruction": self.reconstruction(pixels, reconstructions)}
        for distance in self._perceptual:
            terms["perceptual"] = self.perceptual_weight * distance(pixels, reconstructions)
        rec_loss = torch.stack(list(terms.values())).sum()
        terms["codebook"] = self.codebook_weight * quantization
        disc_active = self.discriminator is not None and self.global_step >= self.disc_start
        if disc_active:
            terms["adversarial"] = self.generator_loss(reconstructions, rec_loss)
        loss = torch.stack(list(terms.values())).sum()
        if not self.generator_step(loss):
            return  # codes follow their features, which are not finite either
        if disc_active:
            self.discriminator_step(pixels, reconstructions.detach())
        self.log_dict({"train/loss": loss} | {f"train/{k}": v for k, v in terms.items()})
        if self.codebook is not None:
            usage = self.codebook.update(z.detach().flatten(0, 1), indices)
            self.log("train/codebook_usage", usage)
            self.log("train/dead_codes_replaced", self.codebook.num_reset.float())

    def generator_loss(self, reconstructions: Tensor, rec_loss: Tensor) -> Tensor:
        """The discriminator's loss of reconstructions, weighed against the other losses."""
        assert self.discriminator is not None
        logits_fake = -self.discriminator(reconstructions).float().mean()
        weight = adaptive_weight(rec_loss, logits_fake, self.model.last_layer)
        self.log("train/disc_weight", weight)
        loss: Tensor = self.disc_weight * weight * logits_fake
        return loss

    def generator_step(self, loss: Tensor) -> bool:
        """One step of the tokenizer's optimizer and its schedule; False if it was skipped."""
        optimizer = self._optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(loss)
        limit = self.gradient_clip_val or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        is_finite = self.grad_guard is None or self.grad_guard.grad_is_finite(norm, self)
        optimizer.step()
        self._step_scheduler(0)
        if self.grad_guard is not None:
            self.log("train/skipped", float(self.grad_guard.skipped))
        return is_finite

    def discriminator_step(self, pixels: Tensor, reconstructions: Tensor) -> None:
        """One step of the discriminator, on real and reconstructed images."""
        assert self.discriminator is not None
        # The bare optimizer: Lightning counts each step of a wrapped one as a step of training.
        optimizer = self._optimizers()[1].optimizer
        optimizer.zero_grad()  # also drops what the tokenizer's loss has left
        logits_real = self.discriminator(pixels).float()
        logits_fake = self.discriminator(reconstructions).float()
        loss = hinge_d_loss(logits_real, logits_fake)
        self.manual_backward(loss)
        if self.grad_guard is not None:
            norm = nn.utils.get_total_norm(
                weight.grad for weight in self.discriminator.parameters() if weight.grad is not None
            )
            self.grad_guard.grad_is_finite(norm, self, "discriminator")
        optimizer.step()
        self._step_scheduler(1)
        self.log_dict(
            {
                "train/disc_loss": loss,
                "train/logits_real": logits_real.mean(),
                "train/logits_fake": logits_fake.mean(),
            }
        )

    def on_validation_epoch_start(self) -> None:
        self.code_counts = torch.zeros_like(self.code_counts, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pixels = _to_float(batch)
        ids = self.model.encode(pixels)
        self.code_counts += torch.bincount(ids.flatten(), minlength=len(self.code_counts))
        error = (self.model.decode(ids).float() - pixels).square().flatten(1).mean(1)
        psnr = (-10 * error.clamp_min(1e-6).log10()).mean()
        self.log("val/psnr", psnr, on_epoch=True, sync_dist=True)
        self.log("val/loss", error.mean(), on_epoch=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        counts = self.trainer.strategy.reduce(self.code_counts, reduce_op="sum")
        self.log("val/codebook_usage", (counts > 0).float().mean())
        self.log("val/codebook_perplexity", perplexity(counts))

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LRScheduler]]:
        codes = [] if self.codebook is None else [self.model.codebook_parameter]
        # Decay would pull codes to zero.
        optimizers = [build_optimizer(self.optimizer, self.model, no_decay=codes)]
        if self.discriminator is not None:
            optimizers.append(build_optimizer(self.optimizer, self.discriminator))
        steps = int(self.trainer.max_steps)
        schedulers = [build_scheduler(self.scheduler, each, steps) for each in optimizers]
        for scheduler in schedulers:
            refuse_plateau(scheduler)
        return optimizers, [each for each in schedulers if each is not None]

    def _optimizers(self) -> list[LightningOptimizer]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _step_scheduler(self, index: int) -> None:
        found = self.lr_schedulers()
        schedulers = found if isinstance(found, list) else [found]
        if schedulers[0] is not None:
            schedulers[index].step()  # type: ignore[union-attr]


def _to_float(batch: dict[str, Tensor]) -> Tensor:
    """The pixels of a batch (B, 3, H, H) in [0, 1]; bytes are a quarter of the transfer."""
    return batch["pixels"].float() / 255


def build_perceptual_loss(
    kind: PerceptualLoss, vgg_weights: str | None, resolution: int
) -> MSSSIMLoss | LPIPS:
    """The perceptual distance.

    Raises:
        UserError: LPIPS is asked for, and the weights of its VGG16 are missing or others.
    """
    if kind is PerceptualLoss.ms_ssim:
        return MSSSIMLoss(resolution)
    if vgg_weights is None:
        raise UserError(f"module.perceptual_loss=lpips needs the weights of a VGG16: {VGG_HINT}")
    return load_lpips(vgg_weights, "module.vgg_weights", VGG_HINT)
