"""LightningModule that trains a student on sentences and on a teacher's stored distributions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from delvm.data.datasets.sentences import SentenceDataset
from delvm.data.teacher_cache.sentences import TeacherSentences
from delvm.data.teacher_cache.store import TeacherCache
from delvm.errors import UserError
from delvm.progress import log
from delvm.training.losses import TokenLoss
from delvm.training.optim import OptimizerFactory, SchedulerFactory
from delvm.training.student import Batch, StudentModule


class OfflineDistillationModule(StudentModule):
    """`StudentModule` whose loss also reads the distributions that `delvm encode teacher=` stored.

    The loss is called with ``teacher_ids`` (n, k) int64 and ``teacher_log_probs`` (n, k + 1)
    float32 per token: of the k most likely tokens, and last of all others together.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: TeacherCache,
        loss: TokenLoss,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        input_weight: float = 1.0,
        token_noise: float = 0.0,
        compile: bool = False,
    ) -> None:
        """
        Args:
            model: the student.
            teacher: the stored distributions, of the sentences that the data gives.
            loss: of logits, targets, weights, teacher_ids and teacher_log_probs.
            optimizer, scheduler, input_weight, token_noise, compile: as of `StudentModule`. Noise
                is in the student's input alone: the teacher has read the clean tokens.
        """
        super().__init__(
            model,
            loss,
            optimizer,
            scheduler,
            input_weight=input_weight,
            token_noise=token_noise,
            compile=compile,
        )
        self.teacher = teacher

    def connect_data(self, data: Any) -> None:
        """As of `StudentModule`; from here on the data's training batches have the distributions.

        Raises:
            UserError: the distributions are of other sentences, tokens, or another vocabulary.
        """
        super().connect_data(data)
        sentences, plan = getattr(data, "train", None), self.teacher.plan
        if not isinstance(sentences, SentenceDataset):
            raise UserError(
                "teacher=offline needs sentences that are found by their numbers, not those of "
                f"{type(data).__name__}: set data=sentences"
            )
        if plan.vocab_size != self.model.vocab_size:
            raise UserError(
                f"vocab_size {plan.vocab_size} (teacher.path={self.teacher.path}) != "
                f"{self.model.vocab_size} (student): set teacher.path=PATH to one of the same "
                "tokenizer"
            )
        data.train = TeacherSentences(sentences, self.teacher)
        epochs = plan.num_sentences / sentences.sentences_per_epoch
        log(
            f"teacher: {plan.num_sentences:,} sentences with its top {plan.top_k} ({epochs:.2g} "
            "epochs), then the same again"
        )

    def loss_inputs(
        self, batch: Batch, document: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return (batch["teacher_ids"].flatten(0, 1), batch["teacher_log_probs"].flatten(0, 1)), ()
