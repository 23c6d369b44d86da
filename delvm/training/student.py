"""LightningModule that trains a student to continue visual sentences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.models.lora import LoRA
from delvm.models.protocols import StudentNet, check_protocol
from delvm.models.teacher_forcing import next_token_nll
from delvm.models.token_space import TokenSpace
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.compiling import compile_blocks
from delvm.training.data.datamodules import SentenceData, check_data
from delvm.training.losses import (
    TokenLoss,
    batch_sums,
    document_ids,
    metric_names,
    target_mask,
    token_weights,
    trained_parts,
)
from delvm.training.optim import (
    OptimizerFactory,
    SchedulerFactory,
    build_optimizer,
    build_scheduler,
    scheduler_config,
)
from delvm.training.strategies import FSDP2Strategy, all_reduce_mean, clip_grad_norm
from delvm.training.token_noise import ImageScope, add_token_noise
from delvm.training.token_order import RandomTokenOrder

Batch = dict[str, Tensor]


class StudentModule(L.LightningModule):
    """Next-token training on batches of `delvm.data.datasets.sentences.SentenceDataset`.

    Notation:
        B batch    T tokens    C width    V vocabulary    N tokens per image
    """

    def __init__(
        self,
        model: nn.Module,
        loss: TokenLoss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        input_weight: float = 1.0,
        token_noise: float = 0.0,
        token_noise_on: ImageScope = ImageScope.targets,
        token_order: RandomTokenOrder | None = None,
        adapter: LoRA | None = None,
        compile: bool = False,
    ) -> None:
        """Keep what is trained, and how.

        Args:
            model: the student: `Transformer`, or any `delvm.models.StudentNet`.
            loss: of the logits of next tokens, see `delvm.training.losses.TokenLoss`. Parameters
                that it has are trained too.
            optimizer: called with the parameters; see `delvm.training.optim`.
            scheduler: called with the optimizer; None keeps the learning rate.
            input_weight: weight of the tokens of input images in the loss, where those of targets
                have 1 (the paper: 1).
            token_noise: largest fraction of an image's tokens that are replaced by random codes in
                the student's input (the paper: 0).
            token_noise_on: images that this is done to: targets, or all.
            token_order: random orders of the tokens of an image; None = raster order.
            adapter: trained in place of the student's own weights; None = these are trained.
            compile: whether the blocks and the loss go through torch.compile.
        """
        super().__init__()
        self.model: Any = cast(Any, model)  # a `StudentNet`
        self.loss = loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.input_weight, self.token_noise, self.compile_model = input_weight, token_noise, compile
        self.token_noise_on = ImageScope(token_noise_on)
        # Hydra passes none as an empty dictionary.
        self.token_order, self.adapter = token_order or None, adapter or None
        self.grad_guard: SkipNonFiniteGrad | None = None
        self.data: SentenceData | None = None
        self.total_steps = 1
        self.val_sums = torch.zeros(0)
        self.step_metrics: list[Batch] = []  # of each batch of a step
        self._is_compiled = False

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = []
        if self.input_weight < 0:
            errors.append(f"input_weight={self.input_weight} is below 0: set it to 0 or more")
        if not 0 <= self.token_noise <= 1:
            errors.append(f"token_noise={self.token_noise} is a fraction: set it from 0 to 1")
        return errors

    def connect_data(self, data: Any) -> None:
        """Take over what the data module knows of its ids: layout, tasks, codebook.

        Raises:
            UserError: the network or the data module lacks what training needs, or they do not
                fit together.
        """
        check_protocol(self.model, StudentNet, "student.net")
        check_data(data, SentenceData, "module=student")
        try:
            self.model.load_codebook(data.codebook, data.tokenizer_fingerprint)
        except ValueError as error:
            raise UserError(f"student.net and data.path do not fit together: {error}") from None
        # Neither networks nor data modules of other packages need to know of it.
        self.model.resize = str(getattr(data, "resize", ""))
        if len(data.codebook) < self.model.vocab_size:  # the ids above are never sampled
            space = getattr(self.model, "token_space", TokenSpace())
            self.model.token_space = replace(space, codebook_size=len(data.codebook))
        if (connect := getattr(self.loss, "connect_codebook", None)) is not None:
            connect(data.codebook)
        if self.token_order is not None:
            self.token_order.connect(self.model, data.tokens_per_image)
        self.data = data

    def attach_adapter(self) -> None:
        """Add the adapter to the student, which has its pretrained weights by now."""
        if self.adapter is not None:
            self.adapter.attach(self.model)

    def setup(self, stage: str) -> None:
        if self.data is None:
            self.connect_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.attach_adapter()

    def configure_model(self) -> None:
        if self.compile_model and not self._is_compiled:
            compile_blocks(self.model)
            self._is_compiled = True
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            for part in (self.model, *self.trained_parts()):
                self.trainer.strategy.shard(part)

    def trained_parts(self) -> list[nn.Module]:
        """The modules besides the network that have parameters: they are not exported."""
        return [*trained_parts(self.loss), *trained_parts(self.token_order)]

    def target_mask(self, batch: Batch) -> Tensor:
        """Which tokens belong to target images, (B, T) bool."""
        assert self.data is not None
        if "is_target" in batch:  # of each image of a packed row
            return batch["is_target"].repeat_interleave(self.data.tokens_per_image, dim=1)
        length = batch["input_ids"].shape[1]
        return target_mask(batch["images_per_example"], length, self.data.tokens_per_image)

    def document_ids(self, batch: Batch) -> Tensor | None:
        """The document of each token, (B, T); None where each sentence is one document."""
        assert self.data is not None
        if "document" in batch:  # likewise
            return batch["document"].repeat_interleave(self.data.tokens_per_image, dim=1)
        if not self.data.is_packed:
            return None
        length = batch["input_ids"].shape[1]
        return document_ids(batch["images_per_example"], length, self.data.tokens_per_image)

    def prepare_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input and weights of a training step.

        Returns:
            input ids (B, T - 1) with token noise, the weight (B, T - 1) of the token that follows
            each, and the document (B, T - 1) of each.
        """
        assert self.data is not None
        mask, document = self.target_mask(batch), self.document_ids(batch)
        input_ids = batch["input_ids"][:, :-1]
        if self.token_noise:
            input_ids = add_token_noise(
                input_ids,
                mask[:, :-1] | (self.token_noise_on is ImageScope.all),
                self.data.tokens_per_image,
                self.token_noise,
                len(self.data.codebook),
            )
        weights = token_weights(mask, self.input_weight, document)
        return input_ids, weights, _inputs_only(document)

    def loss_inputs(
        self, batch: Batch, document: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What the loss reads besides logits, targets and weights: per token, and shared."""
        return (), ()

    def permute_tokens(self, batch: Batch) -> tuple[Batch, Batch, Batch]:
        """Put the tokens of images into random orders, where that is trained.

        Returns:
            the batch, what the network gets besides its ids, and metrics.
        """
        if (order := self.token_order) is None:
            return batch, {}, {}
        probability = order.probability(self.trainer.global_step / self.total_steps)
        index = order.sample(self.target_mask(batch), probability)
        batch = {**batch, "input_ids": batch["input_ids"].gather(1, index)}
        metrics = {"train/permuted": torch.tensor(probability, device=index.device)}
        return batch, order.net_inputs(index, self.document_ids(batch)), metrics

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch, net_inputs, metrics = self.permute_tokens(batch)
        input_ids, weights, document = self.prepare_batch(batch)
        targets, weights = batch["input_ids"][:, 1:].flatten(), weights.flatten()
        hidden = self.model.forward_hidden(input_ids, document_ids=document, **net_inputs)
        hidden = hidden.flatten(0, 1)
        token_inputs, shared_inputs = self.loss_inputs(batch, document)
        sums = batch_sums(
            self.loss,
            hidden,
            self.model.head.weight,
            (targets, weights, *token_inputs),
            shared_inputs,
            compiled=self.compile_model,
        )
        # Divided afterwards, since gradients of single tokens would vanish in half precision. By
        # the weights of all ranks, since the mean over ranks is to be that over all tokens.
        count = getattr(self.loss, "denominators", None)
        counts = weights.sum() if count is None else count(weights, *token_inputs)
        values = torch.flatten(sums / all_reduce_mean(counts))
        is_named = hasattr(self.loss, "metric_names")  # without names, the loss alone is logged
        named = zip(metric_names(self.loss), values, strict=is_named)
        metrics |= {f"train/{name}": value.detach() for name, value in named}
        self.step_metrics.append(metrics)
        return values[0]

    def on_validation_epoch_start(self) -> None:
        assert self.data is not None
        self.val_sums = torch.zeros(len(self.data.tasks), 6, dtype=torch.float64)

    def prediction_sums(self, batch: Batch, num_tasks: int) -> Tensor:
        """Per task: summed loss, correct tokens, tokens; then the same over targets alone.

        Args:
            batch: ``task``, (B,) or of each image (B, K), numbers the tasks; below 0 is not
                counted.
            num_tasks: K.

        Returns:
            (K, 6) float64 on the CPU.
        """
        document, mask = self.document_ids(batch), self.target_mask(batch)
        losses, correct = next_token_nll(self.model, batch["input_ids"], _inputs_only(document))
        all_weights = token_weights(mask, 1.0, document)
        target_weights = token_weights(mask, 0.0, document)
        stats = [
            values * weights
            for weights in (all_weights, target_weights)
            for values in (losses, correct.float(), 1.0)
        ]
        assert self.data is not None
        task = batch["task"].cpu()
        if task.ndim == 1:  # all tokens of a sentence are of its task
            values = torch.stack([each.double().sum(1) for each in stats], dim=1).cpu()
        else:
            values = torch.stack([each.double() for each in stats], dim=-1).flatten(0, 1).cpu()
            task = task.repeat_interleave(self.data.tokens_per_image, dim=1)[:, 1:].flatten()
        counted = task >= 0  # the others pad the last batches, so that all ranks do the same work
        sums = torch.zeros(num_tasks, values.shape[1], dtype=torch.float64)
        return sums.index_add_(0, task[counted], values[counted])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.val_sums += self.prediction_sums(batch, len(self.val_sums))

    def on_validation_epoch_end(self) -> None:
        assert self.data is not None
        sums = self.val_sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        trained = [i for i, task in enumerate(self.data.tasks) if task in self.data.train_tasks]
        for prefix, row in [
            *zip((f"{task}/" for task in self.data.tasks), sums, strict=True),
            ("", sums[trained].sum(0)),
        ]:
            if row[2] == 0:
                continue
            loss = row[0] / row[2]
            metrics = {"loss": loss, "acc": row[1] / row[2], "ppl": loss.exp()}
            metrics |= {"target_loss": row[3] / row[5], "target_acc": row[4] / row[5]}
            for name, value in metrics.items():
                self.log(f"val/{prefix}{name}", value.float())  # the same on every rank

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Once per step, which may have several batches.
        names = self.step_metrics[0]
        means = {k: torch.stack([each[k] for each in self.step_metrics]).mean() for k in names}
        self.step_metrics.clear()
        self.log_dict(means, sync_dist=True)
        # Lightning's own clipping refuses fused optimizers under mixed precision.
        norm = clip_grad_norm(self.trainer, optimizer, gradient_clip_val)
        if self.grad_guard is not None:
            self.grad_guard.grad_is_finite(norm, self)
            self.log("train/skipped", float(self.grad_guard.skipped))
        self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.optimizer, self.model)
        if weights := [p for part in self.trained_parts() for p in part.parameters(False)]:
            optimizer.add_param_group({"params": weights})
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(self.scheduler, optimizer, self.total_steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}


def _inputs_only(document: Tensor | None) -> Tensor | None:
    """The documents of a student's input: all tokens but the last."""
    return None if document is None else document[:, :-1]
