"""LightningModule that trains a student on sentences and on a frozen teacher's distribution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.inference.engine import Engine
from delvm.interop.fingerprint import codebook_matches
from delvm.interop.load import load_student
from delvm.models.precision import autocast_dtype
from delvm.models.transformer import Transformer
from delvm.models.weight_precision import WeightPrecision, int8_buffers_to_parameters
from delvm.training.compiling import compile_blocks
from delvm.training.losses import DistillationLoss, OnPolicyLoss, TokenLoss
from delvm.training.modes import generation_mode
from delvm.training.on_policy import OnPolicy, SampledBatch, find_answers, on_policy_errors
from delvm.training.optim import OptimizerFactory, SchedulerFactory
from delvm.training.strategies import FSDP2Strategy
from delvm.training.student import Batch, StudentModule


def load_teacher(
    checkpoint: str | None = None,
    precision: WeightPrecision = WeightPrecision.fp32,
    compile: bool = False,
) -> Transformer:
    """The frozen teacher of a distillation: whatever `delvm.load_student` reads.

    Args:
        checkpoint: a student's checkpoint or directory.
        precision: of its weights: fp32, bf16, or int8 (see `delvm.models.weight_precision`).
        compile: whether its blocks go through torch.compile.

    Raises:
        UserError: no checkpoint is given, or it is not a student.
    """
    if checkpoint is None:
        raise UserError("module=distillation needs a teacher: set teacher.checkpoint=PATH")
    teacher = load_student(checkpoint, precision=precision, key="teacher.checkpoint")
    if compile:
        compile_blocks(teacher)
    return teacher


class DistillationModule(StudentModule):
    """`StudentModule` whose loss also reads the teacher's hidden states and head.

    The loss is called with ``teacher_hidden`` (n, C) per token and ``teacher_head`` (V, C), from
    which it makes the teacher's logits a chunk at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        loss: TokenLoss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        input_weight: float = 1.0,
        token_noise: float = 0.0,
        compile: bool = False,
        on_policy: OnPolicy | None = None,
    ) -> None:
        """Keep the teacher frozen and outside of the student's checkpoints.

        Args:
            model: the student.
            teacher: of the same vocabulary and tokenizer; see `load_teacher`.
            loss: of logits, targets, weights, teacher_hidden and teacher_head.
            optimizer, scheduler, input_weight, token_noise, compile: as of `StudentModule`.
            on_policy: sentences in which the student samples the answer; None = in no sentence. The
                loss must then be a `DistillationLoss`.

        Raises:
            UserError: sampled answers have no such loss.
        """
        # Hydra passes on_policy=none as an empty dictionary.
        self.on_policy: OnPolicy | None = on_policy or None
        super().__init__(
            model,
            loss if self.on_policy is None else _on_policy_loss(loss, self.on_policy),
            optimizer,
            scheduler,
            input_weight=input_weight,
            token_noise=token_noise,
            compile=compile,
        )
        teacher.eval().requires_grad_(False)
        self._teacher = [teacher]  # in a list, which keeps it out of the state dict

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        return self._teacher[0]

    def connect_data(self, data: Any) -> None:
        super().connect_data(data)
        check_ids(self.teacher, "the teacher", data)
        if self.teacher.vocab_size != self.model.vocab_size:
            raise UserError(
                f"vocab_size {self.teacher.vocab_size} (teacher) != {self.model.vocab_size} "
                "(student): set teacher.checkpoint=PATH to one of the same tokenizer"
            )
        if self.teacher.max_seq_len < data.sentence_length:
            raise UserError(
                f"a sentence has {data.sentence_length} tokens, the teacher's max_seq_len is "
                f"{self.teacher.max_seq_len}: set data.pairs_per_sentence lower, or "
                "teacher.checkpoint=PATH"
            )
        if (connect := getattr(self.loss, "connect_networks", None)) is not None:
            connect(self.model, self.teacher)

    def configure_model(self) -> None:
        super().configure_model()
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            # By itself, since it is outside of the module. What is outside of its blocks stays
            # gathered after its first forward pass, as no backward pass follows.
            int8_buffers_to_parameters(self.teacher)
            self.trainer.strategy.shard(self.teacher)

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.on_policy is None:
            return super().training_step(batch, batch_idx)
        sampled = self.sample_answers(batch, self.on_policy)
        batch = batch | {"input_ids": sampled.input_ids, "is_sampled": sampled.is_sampled}
        loss = super().training_step(batch, batch_idx)
        metrics = {
            "fraction": sampled.num_sampled / len(sampled.input_ids),
            "seconds": sampled.seconds / max(1, sampled.num_sampled),  # per answer
        }
        self.step_metrics[-1] |= {
            f"train/on_policy_{name}": loss.new_tensor(value) for name, value in metrics.items()
        }
        return loss

    def sample_answers(self, batch: Batch, on_policy: OnPolicy) -> SampledBatch:
        """Sample the answers of this step's fraction of a batch."""
        assert self.data is not None
        strategy = type(self.trainer.strategy)
        if errors := on_policy_errors(strategy, "document" in batch):
            raise UserError(errors[0])
        ids, tokens_per_image = batch["input_ids"], self.data.tokens_per_image
        is_target = self.target_mask(batch)[:, ::tokens_per_image]
        document = self.document_ids(batch)
        if document is None:
            document = torch.zeros_like(ids)
        with generation_mode(self.model, is_compiled=self.compile_model) as student:
            return on_policy.sample(
                Engine(student),  # made here, so that it keeps nothing of earlier weights
                ids,
                find_answers(document[:, ::tokens_per_image], is_target),
                tokens_per_image,
                on_policy.count(self.global_step, len(ids)),
                in_lockstep=issubclass(strategy, FSDP2Strategy),
            )

    def prepare_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        input_ids, weights, document = super().prepare_batch(batch)
        if "is_sampled" in batch:  # no noise there: the context is to be the student's own
            clean, is_sampled = batch["input_ids"][:, :-1], batch["is_sampled"][:, :-1]
            input_ids = torch.where(is_sampled, clean, input_ids)
        return input_ids, weights, document

    def loss_inputs(
        self, batch: Batch, document: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        with torch.no_grad():
            # The teacher always sees the tokens without noise, even when the student does not.
            hidden = self.teacher.forward_hidden(batch["input_ids"][:, :-1], document_ids=document)
            head = self.teacher.head.weight
            head = head.to(autocast_dtype(head))  # once, not for each chunk
        hidden = hidden.flatten(0, 1)
        if self.on_policy is None:
            return (hidden,), (head,)
        assert self.data is not None
        targets, is_sampled = (batch[name][:, 1:].flatten() for name in ("input_ids", "is_sampled"))
        trusted = self.on_policy.trusted(
            is_sampled, targets, self.data.tokens_per_image, hidden, head
        )
        return (hidden, is_sampled, trusted), (head,)


def _on_policy_loss(loss: TokenLoss, on_policy: OnPolicy) -> OnPolicyLoss:
    if not isinstance(loss, DistillationLoss):
        raise UserError(
            f"sampled answers need a DistillationLoss, not {type(loss).__name__}: set "
            "module/loss=distillation or module/on_policy=none"
        )
    return OnPolicyLoss(loss, on_policy.selection)


def check_ids(trained: Any, name: str, data: Any) -> None:
    """Refuse a network that was trained on ids of another tokenizer than the data's.

    Networks of other projects do not name their tokenizer: they are recognized by the codebook
    they carry, and accepted where they carry none.

    Raises:
        UserError: it was trained on other ids.
    """
    theirs, ours = trained.tokenizer_fingerprint, data.tokenizer_fingerprint
    fits = theirs == ours if theirs else codebook_matches(trained, data.codebook)
    if not fits:
        tokenizer = f"tokenizer {theirs}" if theirs else "a tokenizer with other codes"
        raise UserError(
            f"{name} was trained on ids of {tokenizer}, {data.path} holds those of {ours}: set "
            "data.path=PATH"
        )
