"""On-policy distillation: in a part of the sentences the student samples the answer in training.

A student that only reads true tokens never sees its own errors, which it meets when it is prompted.
So the answer, the last image of a sentence, is replaced by one that the student samples, and the
teacher gives its distribution over each token of it (GKD, Agarwal et al. 2023, arXiv 2306.13649).
All images before it stay a true prompt. A sampled token is not a truth, so it has no cross-entropy,
see `delvm.training.losses.on_policy`.

Notation:
    B sentences of a batch    T tokens    N tokens per image    K images    D sampled answers
    V vocabulary    C width of the teacher
"""

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.inference.decoding import Decoding, SamplingConfig, sampling_errors
from delvm.inference.engine import Engine
from delvm.training.losses import chunked_linear_map
from delvm.training.losses.selection import Selection
from delvm.training.strategies import FSDP1Strategy, FSDP2Strategy

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class SampledBatch:
    """A batch with answers that the student sampled.

    Attributes:
        input_ids: (B, T).
        is_sampled: (B, T) bool, the tokens that the student sampled.
        num_sampled: D.
        seconds: that it took to sample them.
    """

    input_ids: Tensor
    is_sampled: Tensor
    num_sampled: int
    seconds: float


class OnPolicy:
    """Which fraction of the sentences is on-policy, how answers are sampled, and which are trusted.

    The fraction is 0 before ``start_step``, ``start_fraction`` there, and grows evenly to
    ``fraction`` within ``ramp_steps``.
    """

    def __init__(
        self,
        fraction: float = 0.5,
        start_fraction: float = 0.0,
        start_step: int = 0,
        ramp_steps: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_teacher_prob: float = 0.0,
        selection: Selection | None = None,
    ) -> None:
        """
        Args:
            fraction: of the sentences of a batch, in which the student samples the answer, in
                [0, 1]; GKD's lambda.
            start_fraction: the fraction at ``start_step``.
            start_step: optimizer step of the first sampled answers.
            ramp_steps: steps from ``start_fraction`` to ``fraction``; 0 = ``fraction`` at once.
            temperature: of the samples; 0 = the most likely tokens.
            top_k, top_p: sample from the k most likely tokens, and from the fewest tokens that
                together have the probability p; None = all.
            min_teacher_prob: the teacher is not trusted on an answer after the first sampled token
                that it finds less likely than this: such a context is foreign to it. 0 = always.
            selection: of the sampled tokens that the distributions are compared on; None = all.
        """
        self.fraction, self.start_fraction = fraction, start_fraction
        self.start_step, self.ramp_steps = start_step, ramp_steps
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.min_teacher_prob = min_teacher_prob
        # Hydra passes selection=none as an empty dictionary.
        self.selection: Selection | None = selection or None

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = [
            f"{name}={value} is a fraction: set it from 0 to 1"
            for name in ("fraction", "start_fraction", "min_teacher_prob")
            if not 0 <= (value := getattr(self, name)) <= 1
        ]
        errors += [
            f"{name}={value} is below 0: set it to 0 or more"
            for name in ("start_step", "ramp_steps")
            if (value := getattr(self, name)) < 0
        ]
        method = Decoding.sample if self.temperature > 0 else Decoding.greedy
        return errors + sampling_errors(method, self.temperature, self.top_k, self.top_p)

    def fraction_at(self, step: int) -> float:
        """The fraction of on-policy sentences at an optimizer step."""
        done = step - self.start_step
        if done < 0:
            return 0.0
        if done >= self.ramp_steps:
            return self.fraction
        return self.start_fraction + (self.fraction - self.start_fraction) * done / self.ramp_steps

    def count(self, step: int, batch_size: int) -> int:
        """How many sentences of a batch are on-policy at a step: the same number on all ranks.

        What is not a whole number of sentences is rounded up in that fraction of the steps, spread
        evenly over them.
        """
        rounding = math.modf(0.5 + step * _GOLDEN_RATIO)[0]
        return math.floor(self.fraction_at(step) * batch_size + rounding)

    @torch.no_grad()
    def sample(
        self,
        engine: Engine,
        input_ids: Tensor,
        answers: Tensor,
        tokens_per_image: int,
        count: int,
        *,
        in_lockstep: bool = False,
    ) -> SampledBatch:
        """Replace the answers of some sentences by those that the student samples.

        Which sentences, and their tokens, depend on torch's global generator on the CPU.

        Args:
            engine: of the student, which is in evaluation mode.
            input_ids: (B, T) int64.
            answers: (B, 2), from `find_answers`.
            tokens_per_image: N.
            count: of answers to sample; fewer are sampled where fewer sentences have one.
            in_lockstep: whether all ranks must call the student equally often. If no sentence has
                an answer, one is then sampled in vain.
        """
        started = time.perf_counter()
        is_sampled = torch.zeros_like(input_ids, dtype=torch.bool)
        if not count:
            return SampledBatch(input_ids, is_sampled, 0, 0.0)
        eligible = (answers[:, 1] > 0).nonzero().flatten().cpu()
        chosen = eligible[torch.randperm(len(eligible))[:count]].tolist()
        starts = (answers * tokens_per_image).tolist()  # first tokens of prompts and answers
        if chosen:
            spans = [(b, *starts[b]) for b in chosen]
            sampled = self._generate(engine, input_ids, spans, tokens_per_image)
            input_ids = input_ids.clone()
            for b, ids in zip(chosen, sampled, strict=True):
                answer = slice(starts[b][1], starts[b][1] + tokens_per_image)
                input_ids[b, answer], is_sampled[b, answer] = ids, True
        elif in_lockstep and (last := input_ids.shape[1] - tokens_per_image) > 0:
            self._generate(engine, input_ids, [(0, 0, last)], tokens_per_image)
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)  # or the clock would stop before the work
        return SampledBatch(input_ids, is_sampled, len(chosen), time.perf_counter() - started)

    def _generate(
        self, engine: Engine, input_ids: Tensor, spans: list[tuple[int, int, int]], length: int
    ) -> Tensor:
        """Answers (D, length) to prompts, each given by its row, its first token and its end."""
        # The tokens of the last image are the query, whose number is the same for all.
        prompts = [input_ids[row, start : end - length] for row, start, end in spans]
        queries = torch.stack([input_ids[row, end - length : end] for row, _, end in spans])
        return engine.generate_each(
            [prompts],
            queries,
            length,
            SamplingConfig(
                temperature=self.temperature,
                decoding=Decoding.sample if self.temperature > 0 else Decoding.greedy,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=int(torch.randint(2**31, ())),
            ),
            batch_size=len(queries),
        )

    def trusted(
        self,
        is_sampled: Tensor,
        targets: Tensor,
        tokens_per_image: int,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
    ) -> Tensor:
        """The sampled tokens on which the teacher is trusted, (n,) bool.

        Args:
            is_sampled: (n,) bool, whether the student sampled the token that is to be predicted.
            targets: (n,) int64, these tokens, those of an answer in order.
            tokens_per_image: N; an answer is complete or not there.
            teacher_hidden: (n, C).
            teacher_head: (V, C).
        """
        if not self.min_teacher_prob or not is_sampled.any():
            return is_sampled

        def log_prob(logits: Tensor, ids: Tensor) -> Tensor:
            return -F.cross_entropy(logits, ids, reduction="none")

        sampled = is_sampled.nonzero().flatten()
        found = chunked_linear_map(
            teacher_hidden[sampled], teacher_head, log_prob, (targets[sampled],)
        )
        is_foreign = (found < math.log(self.min_teacher_prob)).view(-1, tokens_per_image)  # (D, N)
        before = is_foreign.int().cumsum(1) - is_foreign.int()
        trusted = torch.zeros_like(is_sampled)
        trusted[sampled] = (before == 0).flatten()
        return trusted


def find_answers(documents: Tensor, is_target: Tensor) -> Tensor:
    """Where the answer of each sentence is: the last image of its last document with a prompt.

    Args:
        documents: (B, K) of each image; below 0 is padding. A document is images in a row.
        is_target: (B, K) bool.

    Returns:
        (B, 2) int64: the first image of the document, and the answer; (0, 0) without an answer,
        as of single images, which have no prompt.
    """
    same = documents[:, 1:] == documents[:, :-1]
    has_prompt, is_last = F.pad(same, (1, 0)), ~F.pad(same, (0, 1))
    is_answer = has_prompt & is_last & is_target & (documents >= 0)
    image = torch.arange(documents.shape[1], device=documents.device)
    answer = torch.where(is_answer, image, 0).amax(1)  # (B,)
    its_document = documents.gather(1, answer[:, None])
    first = (documents == its_document).int().argmax(1)
    return torch.stack((torch.where(answer > 0, first, 0), answer), dim=1)


def on_policy_errors(strategy: object, is_packed: bool) -> list[str]:
    """Errors of sampling answers under a strategy, one line each.

    Args:
        strategy: its class, or None.
        is_packed: whether ``data.packing`` is set.
    """
    if not isinstance(strategy, type):
        return []
    if issubclass(strategy, FSDP1Strategy):
        return [
            "strategy=fsdp cannot sample answers in training: set strategy=fsdp2, or "
            "module/on_policy=none"
        ]
    if issubclass(strategy, FSDP2Strategy) and is_packed:
        return [
            "prompts in packed rows differ in length, so that ranks that share weights would wait "
            "for each other: set data.packing=false, strategy=ddp, or module/on_policy=none"
        ]
    return []
