"""LightningModules that train a student on sentences: alone, or from a teacher."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from delvm.models.teacher_forcing import next_token_nll
from delvm.models.transformer import Transformer
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.config import DistillationModule, OptimConfig, StudentModule
from delvm.training.losses import (
    CrossEntropyLoss,
    DistillationLoss,
    LossFn,
    autocast_dtype,
    chunked_linear_loss,
    document_ids,
    target_mask,
    token_weights,
)
from delvm.training.optim import build_optimizer
from delvm.training.strategies import FSDP2Strategy, all_reduce_mean, clip_grad_norm
from delvm.training.token_noise import add_token_noise


class StudentTraining(L.LightningModule):
    """Next-token training of a transformer on batches of `delvm.data.datasets.sentences`."""

    def __init__(
        self,
        model: Transformer,
        loss: StudentModule,
        optim: OptimConfig,
        *,
        tokens_per_image: int,
        tasks: list[str],
        trained: list[str],
        packed: bool = False,
    ) -> None:
        """Say what is trained, and what validation reports.

        Args:
            model: the transformer.
            loss, optim: their settings.
            tokens_per_image: N.
            tasks: the validation tasks, by the numbers that batches carry.
            trained: those of them that ``val/loss`` and its kin are taken over; each task is
                reported by its own name as well.
            packed: whether any sentence holds several documents.
        """
        super().__init__()
        self.model, self.loss, self.optim = model, loss, optim
        self.tokens_per_image, self.tasks = tokens_per_image, tasks
        self.trained = [number for number, task in enumerate(tasks) if task in trained]
        self.packed = packed
        self.compiled = False  # the loss; the model is compiled by itself
        self.loss_fn: LossFn = CrossEntropyLoss(loss.label_smoothing, loss.z_loss)
        self.grad_guard: SkipNonFiniteGrad | None = None
        self.sums = torch.zeros(0)
        self.told: list[dict[str, Tensor]] = []  # figures of each batch of a step

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            self.trainer.strategy.shard(self.model)

    def documents(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The document of each token (B, T); None where each sentence is one."""
        pictures, length = batch["images_per_example"], batch["input_ids"].shape[1]
        if not self.packed:
            return None
        return document_ids(pictures, length, self.tokens_per_image)

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """Which tokens (B, T) are of target pictures."""
        return target_mask(
            batch["images_per_example"], batch["input_ids"].shape[1], self.tokens_per_image
        )

    def read(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What training looks at.

        Returns:
            ids (B, T - 1) as they are read, the weight (B, T - 1) of the token after each, and the
            document (B, T - 1) of each.
        """
        c, is_target, document = self.loss, self.targets(batch), self.documents(batch)
        known = batch["input_ids"][:, :-1]
        if c.misread:
            vocab = self.model.config.vocab_size
            known = add_token_noise(
                known, is_target[:, :-1], self.tokens_per_image, c.misread, vocab
            )
        return known, token_weights(is_target, c.input_weight, document), _known(document)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        known, weights, document = self.read(batch)
        targets, weights = batch["input_ids"][:, 1:].flatten(), weights.flatten()
        hidden = self.model.forward_hidden(known, document_ids=document).flatten(0, 1)
        columns = (targets, weights)
        total = chunked_linear_loss(
            hidden, self.model.head.weight, self.loss_fn, columns, compiled=self.compiled
        )
        # Divided afterwards, since gradients of single tokens would vanish in half precision. By
        # what all ranks have, since the mean over ranks is to be that over all tokens.
        loss = total / all_reduce_mean(weights.sum())
        self.told.append({"train/loss": loss.detach()})
        return loss

    def on_validation_epoch_start(self) -> None:
        # a task's row: summed loss, correct tokens, tokens; then the same over targets alone
        self.sums = torch.zeros(len(self.tasks), 6, dtype=torch.float64)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        document, is_target = self.documents(batch), self.targets(batch)
        losses, correct = next_token_nll(self.model, batch["input_ids"], _known(document))
        every = token_weights(is_target, 1.0, document)
        target = token_weights(is_target, 0.0, document)
        columns = [each * w for w in (every, target) for each in (losses, correct.float(), 1.0)]
        rows = torch.stack([c.double().sum(1) for c in columns], dim=1).cpu()
        counted = batch["task"].cpu() >= 0  # others are there to give each rank as much to do
        self.sums.index_add_(0, batch["task"].cpu()[counted], rows[counted])

    def on_validation_epoch_end(self) -> None:
        sums = self.sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
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
                self.log(f"val/{name}{figure}", value.float())  # the same in every process

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Once a step, which may be of several batches.
        means = {k: torch.stack([each[k] for each in self.told]).mean() for k in self.told[0]}
        self.told.clear()
        self.log_dict(means, sync_dist=True)
        # Lightning's own clipping refuses fused optimizers under mixed precision
        norm = clip_grad_norm(self.trainer, optimizer, gradient_clip_val)
        if self.grad_guard is not None:
            self.grad_guard.grad_is_finite(norm, self)
            self.log("train/skipped", float(self.grad_guard.skipped))
        self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = list(self.model.parameter_groups(self.optim.weight_decay))
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimizer(groups, self.optim, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _known(document: Tensor | None) -> Tensor | None:
    """The documents of what a student reads: all tokens but the last."""
    return None if document is None else document[:, :-1]


class DistillationTraining(StudentTraining):
    """Training of a student on sentences and on the frozen teacher's distribution over them."""

    loss: DistillationModule

    def __init__(
        self, model: Transformer, teacher: Transformer, loss: DistillationModule, **rest: Any
    ) -> None:
        super().__init__(model, loss, **rest)
        self.loss_fn = DistillationLoss(
            loss.gt_weight,
            loss.kd_weight,
            loss.temperature,
            loss.direction,
            loss.label_smoothing,
            loss.z_loss,
        )
        teacher.eval().requires_grad_(False)
        self._teacher = [teacher]  # in a list: its weights belong to no checkpoint of the student

    @property
    def teacher(self) -> Transformer:
        """The frozen teacher."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        known, weights, document = self.read(batch)
        targets, weights = batch["input_ids"][:, 1:].flatten(), weights.flatten()
        hidden = self.model.forward_hidden(known, document_ids=document).flatten(0, 1)
        with torch.no_grad():
            # The teacher reads what is true, also where the student misreads.
            guide = self.teacher.forward_hidden(
                batch["input_ids"][:, :-1], document_ids=document
            ).flatten(0, 1)
            head = self.teacher.head.weight
            head = head.to(autocast_dtype(head))  # once, not for each few rows
        # Everything in sums, divided afterwards as of a student alone.
        sums = chunked_linear_loss(
            hidden,
            self.model.head.weight,
            self.loss_fn,
            (targets, weights, guide),
            (head,),
            compiled=self.compiled,
        )
        loss, *told = sums / all_reduce_mean(weights.sum())
        told = [each.detach() for each in told]
        self.told.append(dict(zip(("train/loss", "train/kd"), told, strict=True)))
        return loss
