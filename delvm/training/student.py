"""LightningModules that train a student on sentences: alone, or from a teacher."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from delvm.models.transformer import Transformer
from delvm.training.config import Direction, DistillationModule, OptimConfig, StudentModule
from delvm.training.losses import cross_entropy, distillation, misread, token_weights
from delvm.training.schedule import build_optimizer


class StudentTraining(L.LightningModule):
    """Next-token training of a transformer on batches {"ids": (B, T), "task": (B,)}."""

    def __init__(
        self,
        model: Transformer,
        loss: StudentModule,
        optim: OptimConfig,
        *,
        tokens_per_image: int,
        tasks: list[str],
        trained: list[str],
    ) -> None:
        """Say what is trained, and what validation reports.

        Args:
            model: the transformer.
            loss, optim: their settings.
            tokens_per_image: N.
            tasks: the validation tasks, by the numbers that batches carry.
            trained: those of them that ``val/loss`` and its kin are taken over; each task is
                reported by its own name as well.
        """
        super().__init__()
        self.model, self.loss, self.optim = model, loss, optim
        self.tokens_per_image, self.tasks = tokens_per_image, tasks
        self.trained = [number for number, task in enumerate(tasks) if task in trained]
        self.sums = torch.zeros(0)

    def weights(self, ids: Tensor) -> Tensor:
        """Weight (T - 1,) of each predicted token."""
        weights = token_weights(ids.shape[1], self.tokens_per_image, self.loss.input_weight)
        return weights.to(ids.device)

    def ground_truth_loss(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Next-token loss of logits (B, T - 1, V) against ids (B, T)."""
        c = self.loss
        return cross_entropy(logits, ids[:, 1:], self.weights(ids), c.label_smoothing, c.z_loss)

    def read(self, ids: Tensor) -> Tensor:
        """What the student reads (B, T - 1) of sentences (B, T) when it is trained on them."""
        known, share = ids[:, :-1], self.loss.misread
        if not share:
            return known
        return misread(known, self.tokens_per_image, share, self.model.config.vocab_size)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        ids = batch["ids"]
        loss = self.ground_truth_loss(self.model(self.read(ids)), ids)
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        # a task's row: summed loss, correct tokens, tokens; then the same over targets alone
        self.sums = torch.zeros(len(self.tasks), 6, dtype=torch.float64)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        ids = batch["ids"]
        logits = self.model(ids[:, :-1]).float()
        targets = ids[:, 1:]
        losses = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        correct = (logits.argmax(-1) == targets).float()
        is_target = token_weights(ids.shape[1], self.tokens_per_image, 0.0).to(ids.device)
        one = torch.ones_like(losses)
        columns = [losses, correct, one, losses * is_target, correct * is_target, one * is_target]
        rows = torch.stack([c.double().sum(1) for c in columns], dim=1).cpu()
        self.sums.index_add_(0, batch["task"].cpu(), rows)

    def on_validation_epoch_end(self) -> None:
        sums = self.sums
        if self.trainer.world_size > 1:
            gathered = self.all_gather(sums.to(self.device))
            assert isinstance(gathered, Tensor)
            sums = gathered.sum(0).cpu()
        for name, row in [
            *zip((f"{t}/" for t in self.tasks), sums, strict=True),
            ("", sums[self.trained].sum(0)),
        ]:
            if row[2] == 0:
                continue
            loss = row[0] / row[2]
            figures = {"loss": loss, "acc": row[1] / row[2], "ppl": loss.exp()}
            figures |= {"target_loss": row[3] / row[5], "target_acc": row[4] / row[5]}
            for figure, value in figures.items():
                self.log(f"val/{name}{figure}", value.float(), rank_zero_only=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own clipping refuses fused optimizers under mixed precision
        limit = gradient_clip_val or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = list(self.model.parameter_groups(self.optim.weight_decay))
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimizer(groups, self.optim, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class DistillationTraining(StudentTraining):
    """Training of a student on sentences and on the frozen teacher's distribution over them."""

    loss: DistillationModule

    def __init__(
        self, model: Transformer, teacher: Transformer, loss: DistillationModule, **rest: Any
    ) -> None:
        super().__init__(model, loss, **rest)
        teacher.eval().requires_grad_(False)
        self._teacher = [teacher]  # in a list: its weights belong to no checkpoint of the student

    @property
    def teacher(self) -> Transformer:
        """The frozen teacher."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        ids, c = batch["ids"], self.loss
        logits = self.model(self.read(ids))
        with torch.no_grad():
            guide = self.teacher(ids[:, :-1])
        truth = self.ground_truth_loss(logits, ids)
        inverse = c.direction is Direction.inverse
        kd = distillation(logits, guide, self.weights(ids), c.temperature, inverse)
        self.log_dict({"train/loss": truth, "train/kd": kd})
        return c.gt_weight * truth + c.kd_weight * kd
