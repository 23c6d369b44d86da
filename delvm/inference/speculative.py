"""Speculative decoding: a small draft student proposes tokens, the large one checks them at once.

Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318). Most of the time of
one token goes into reading the weights of a large student, and one reading serves several tokens
too. So a draft, such as a student distilled from it, proposes K tokens one by one; one call of the
large student gives its own choice after each of them, and those before the first difference stay.

Greedy and mean_embedding: the draft chooses by the same rule, and a token is accepted where both
choose the same. The answer is that of the large student alone, up to rounding in near ties.

Sampling: with probabilities p of the large student and q of the draft, a drafted token x is
accepted with probability min(1, p(x) / q(x)), else replaced by a sample of max(0, p - q). The
result has the distribution p, after temperature, top-k and top-p. The answer to one query is
another sample than without a draft; it does not depend on what else is in the batch.

Where drafting does not pay, single tokens follow. All deterministic answers are the same, so time
decides: after some cycles, drafting stops unless the tokens of a mean cycle would have taken longer
one by one. That is measured for each batch size; in large batches the student is bound by
computation, and checking several tokens takes several times as long. A sample must not depend on a
clock or on other rows: there each row decides by the sizes of the two students, which say what a
cycle costs, and by its own tokens per cycle, starting from an assumption (`expected_tokens`).

Notation:
    B rows    N new tokens    K drafted tokens of a cycle    C codebook size
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from delvm.inference.decoding import Decoding, SamplingConfig
from delvm.inference.generation import Rows, uniform_values
from delvm.inference.sampling import deterministic_ids, sample_from_uniform, top_k_top_p_probs

PLAIN_STEPS = 3  # single tokens that are timed before the first draft
FIRST_CYCLES = 3  # before it is given up where not even accepting all drafts would pay
MIN_CYCLES = 16  # before it is given up for the drafts that were accepted

# For samples, which no clock may decide about:
CALL_BYTES = 1 << 26  # a call takes as long as reading these and all weights
ASSUMED_CYCLES = 2  # each answer starts as if so many cycles had been
ASSUMED_ACCEPTED = 0.8  # in which each draft was accepted with this probability


class StudentContexts(NamedTuple):
    """The contexts of one student, and how their logits become one."""

    contexts: list[Rows]
    combine: Callable[[list[Tensor]], Tensor]

    def first_logits(self) -> Tensor:
        """Logits (B, C) of the token after the contexts."""
        return self.combine([each.first_logits() for each in self.contexts])

    def logits(self, ids: Tensor) -> Tensor:
        """Append tokens (B, T); logits (B, T, C) of the token after each of them."""
        return self.combine([each.each_logits(ids) for each in self.contexts])

    def make_static(self) -> None:
        """Let rows have lengths of their own."""
        for each in self.contexts:
            each.make_static()

    def rewind(self, kept: Tensor) -> None:
        """Keep ``kept`` (B,) of the tokens after the contexts; -1 forgets one of the contexts."""
        for each in self.contexts:
            each.rewind(kept)


@dataclass
class DraftTiming:
    """What drafting gave so far in batches of one size, when the choice is deterministic.

    Attributes:
        most: tokens of a cycle whose drafts are all accepted, K + 1.
        plain, cycle: seconds of the fastest call for one token, and of the fastest complete cycle.
        plain_steps, cycles: how many of each there were.
        tokens: mean over rows of the tokens that all cycles gave.
    """

    most: int
    plain: float = math.inf
    cycle: float = math.inf
    plain_steps: int = 0
    cycles: int = 0
    tokens: float = 0.0

    def pays(self) -> bool:
        """Whether the tokens of a mean cycle would take longer one by one."""
        tokens = self.most if self.cycles < MIN_CYCLES else self.tokens / self.cycles
        return self.cycles < FIRST_CYCLES or tokens * self.plain > self.cycle


@dataclass
class _Progress:
    """Tokens that each row got in cycles with a draft, and the number of these cycles, (B,)."""

    tokens: Tensor
    cycles: Tensor

    def add(self, most: Tensor, new: Tensor) -> None:
        self.tokens += torch.where(most > 0, new, 0)
        self.cycles += most > 0

    def pays(self, cycle_cost: float, draft_tokens: int) -> Tensor:
        """Whether each row gets more tokens per cycle than plain calls cost as much."""
        tokens = self.tokens + ASSUMED_CYCLES * expected_tokens(draft_tokens)
        return tokens > cycle_cost * (self.cycles + ASSUMED_CYCLES)


@dataclass
class Speculation:
    """Counts of an engine; a call for B rows counts B times.

    Attributes:
        drafted, accepted: proposed tokens, and those of them that were kept.
        tokens: new tokens of all answers, but for the first of each, which follows the prompt.
        teacher_calls: calls of the large student that gave them.
        fallbacks: batches without a draft, completely or from some token on.
        timings: size of a batch -> what decides there.
    """

    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    teacher_calls: int = 0
    fallbacks: int = 0
    timings: dict[int, DraftTiming] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for people."""
        share = f"{self.accepted / self.drafted:.0%}" if self.drafted else "none"
        line = f"draft: {share} of {self.drafted:,} drafted tokens accepted"
        if self.teacher_calls:
            line += f", {self.tokens / self.teacher_calls:.2f} tokens per call of the student"
        if self.fallbacks:
            batches = "1 batch" if self.fallbacks == 1 else f"{self.fallbacks:,} batches"
            line += f"; {batches} continued without it, where it does not pay"
        return line


class SpeculativeDecoder:
    """Generates the answers of one batch."""

    def __init__(
        self,
        student: StudentContexts,
        draft: StudentContexts,
        sampling: SamplingConfig,
        *,
        draft_tokens: int,
        relative_cost: float,
        speculation: Speculation,
        codebook: Tensor | None,
        static: bool = False,
    ) -> None:
        """
        Args:
            student: the large student, whose answers these are.
            draft: the small one.
            sampling: how each token is chosen.
            draft_tokens: K, 1 or more.
            relative_cost: of a call of the draft, that of the large student being 1.
            speculation: where everything is counted.
            codebook: (C, d) of the tokenizer; needed by ``decoding=mean_embedding``.
            static: keep all shapes the same for one row too, not just for several.

        Raises:
            ValueError: no codebook is given where one is needed.
        """
        if sampling.decoding is Decoding.mean_embedding and codebook is None:
            raise ValueError("decoding=mean_embedding needs the tokenizer's codebook")
        self.student, self.draft, self.sampling = student, draft, sampling
        self.draft_tokens, self.counts = draft_tokens, speculation
        self.codebook = codebook if sampling.decoding is Decoding.mean_embedding else None
        self.samples = sampling.decoding is Decoding.sample
        self._cycle_cost = cycle_cost(draft_tokens, relative_cost)
        self.static = static
        self._unread = 2  # tokens at the end of each row that the draft has not read for certain

    @torch.inference_mode()
    def generate(
        self, last: Tensor, max_new_tokens: int, row_ids: Sequence[int] | None = None
    ) -> Tensor:
        """Continue all rows.

        Args:
            last: the last token of each row's context, (B,) int64.
            max_new_tokens: N, 1 or more.
            row_ids: as of `delvm.inference.generation.decode_tokens`.

        Returns:
            ids (B, N) int64.
        """
        rows, device = len(last), last.device
        if self.samples:
            # Three of each token: to draft it, to accept that, and to sample in its place.
            numbers = range(rows) if row_ids is None else row_ids
            values = uniform_values(numbers, 3 * max_new_tokens, self.sampling.seed)
            padding = values.new_zeros(rows, 3 * self.draft_tokens + 3)
            self.uniform = torch.cat((values, padding), dim=1).view(rows, -1, 3).to(device)
        # The last token of the context, then the new ones; cycles may write beyond the end.
        ids = last.new_zeros(rows, max_new_tokens + self.draft_tokens + 2)
        ids[:, 0] = last
        ids[:, 1] = self._choose(self.student.first_logits()[:, None], torch.zeros_like(last))[:, 0]
        self.draft.first_logits()
        static = rows > 1 or self.static
        # Counts of each row stay on the CPU; a cycle waits for the device once, for its new tokens.
        known = torch.ones(rows, dtype=torch.int64)
        progress = _Progress(torch.zeros_like(known), torch.zeros_like(known))
        timing = self.counts.timings.setdefault(rows, DraftTiming(self.draft_tokens + 1))
        fell_back = False
        while int((left := max_new_tokens - known).max()) > 0:
            start = time.perf_counter()
            # -1 where a row is complete; 0 takes one token of the large student.
            most = (left - 1).clamp_max(self.draft_tokens)
            if self.samples:
                pays = progress.pays(self._cycle_cost, self.draft_tokens)
                most = torch.where(pays, most, most.clamp_max(0))
                fell_back |= not bool(pays.all())
            elif timing.plain_steps < PLAIN_STEPS or not timing.pays():
                most = most.clamp_max(0)
                fell_back |= timing.plain_steps >= PLAIN_STEPS
            count = int(most.max())
            if static and count > 0:
                # From now on, since single tokens are timed as they are computed without a draft.
                self.student.make_static()
                self.draft.make_static()
                count = self.draft_tokens  # the same shapes to the end; `most` limits what is kept
            new = self._cycle(ids, known.to(device), most.to(device), count).cpu()
            known = known + new
            progress.add(most, new)
            self._count(timing, most, new, count, time.perf_counter() - start)
        self.counts.fallbacks += fell_back
        return ids[:, 1 : 1 + max_new_tokens]

    def _cycle(self, ids: Tensor, known: Tensor, most: Tensor, count: int) -> Tensor:
        """Draft and check up to ``count`` tokens, of which row b may keep ``most[b]``.

        Returns:
            how many tokens each row got, (B,): those that were kept, and one more.
        """
        drafts, probs = self._propose(ids, known, count) if count else (ids[:, :0], None)
        self._unread = 2 if count else self._unread + 1
        self.student.rewind(known - 1)
        last = ids.gather(1, known[:, None])
        logits = self.student.logits(torch.cat((last, drafts), dim=1))  # (B, K + 1, C)
        steps = torch.arange(count + 1, device=ids.device)
        if self.samples:
            accepted, new = self._accept_samples(logits, drafts, probs, known, most)
        else:
            new = self._choose(logits, known)
            accepted = _leading((new[:, :-1] == drafts) & (steps[:-1] < most[:, None]))
        ids.scatter_(1, known[:, None] + 1 + steps, new)
        return torch.where(most < 0, 0, accepted + 1)

    def _propose(self, ids: Tensor, known: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """Drafted tokens (B, K) after the known ones; for samples their probabilities (B, K, C)."""
        # The last token but one is missing where all of a draft was kept; else it is read again.
        self.draft.rewind(known - self._unread)
        unread = torch.arange(1 - self._unread, 1, device=ids.device)
        tokens = ids.gather(1, known[:, None] + unread)
        drafts, probs = [], []
        for step in range(count):
            logits = self.draft.logits(tokens)[:, -1:]
            if self.samples:
                probs.append(self._probs(logits))
                uniform = self._uniform(known + step, 1)[..., 0]
                tokens = sample_from_uniform(probs[-1][:, 0], uniform[:, 0])[:, None]
            else:
                tokens = self._choose(logits, known)
            drafts.append(tokens)
        return torch.cat(drafts, dim=1), torch.cat(probs, dim=1) if probs else None

    def _accept_samples(
        self, logits: Tensor, drafts: Tensor, q: Tensor | None, known: Tensor, most: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How many drafted samples stay, (B,), and these with the one that follows, (B, K + 1)."""
        rows, count = torch.arange(len(drafts), device=drafts.device), drafts.shape[1]
        p, uniform = self._probs(logits), self._uniform(known, count + 1)
        accepted, rest = torch.zeros_like(known), p[:, 0]
        if q is not None:
            index, steps = drafts[..., None], torch.arange(count, device=drafts.device)
            p_of, q_of = p[:, :-1].gather(2, index)[..., 0], q.gather(2, index)[..., 0]
            accepted = _leading((uniform[:, :-1, 1] * q_of < p_of) & (steps < most[:, None]))
            # After a row's last draft, the next token is a plain sample.
            q = q[rows, accepted.clamp_max(count - 1)] * (accepted < most)[:, None]
            rest = residual(p[rows, accepted], q)
        after = sample_from_uniform(rest, uniform[rows, accepted, 2])[:, None]
        return accepted, torch.cat((drafts, after), dim=1).scatter(1, accepted[:, None], after)

    def _choose(self, logits: Tensor, known: Tensor) -> Tensor:
        """The large student's tokens (B, T) by logits (B, T, C); samples are of the next token."""
        if self.samples:
            uniform = self._uniform(known, 1)[:, 0, 2]
            return sample_from_uniform(self._probs(logits)[:, 0], uniform)[:, None]
        return deterministic_ids(logits.flatten(0, 1), self.codebook).view(logits.shape[:2])

    def _probs(self, logits: Tensor) -> Tensor:
        options = self.sampling.temperature, self.sampling.top_k, self.sampling.top_p
        return top_k_top_p_probs(logits.flatten(0, 1), *options).view(logits.shape)

    def _uniform(self, known: Tensor, count: int) -> Tensor:
        """The uniform values (B, T, 3) of the ``count`` tokens after the known ones."""
        steps = known[:, None] + torch.arange(count, device=known.device)
        return self.uniform.gather(1, steps[..., None].expand(-1, -1, 3))

    def _count(
        self, timing: DraftTiming, most: Tensor, new: Tensor, count: int, seconds: float
    ) -> None:
        calls, gained = int((most >= 0).sum()), int(new.sum())
        self.counts.teacher_calls += calls
        self.counts.tokens += gained
        if not count:
            timing.plain, timing.plain_steps = min(timing.plain, seconds), timing.plain_steps + 1
            return
        self.counts.drafted += int(most.clamp_min(0).sum())
        self.counts.accepted += int((new - 1)[most > 0].sum())
        if int(most.max()) == self.draft_tokens:  # the last cycles are shorter
            timing.cycle, timing.cycles = min(timing.cycle, seconds), timing.cycles + 1
            timing.tokens += gained / calls


def relative_cost(draft_bytes: int, student_bytes: int) -> float:
    """Estimated cost of a call of the draft, that of the student being 1, from their weights."""
    return (CALL_BYTES + draft_bytes) / (CALL_BYTES + student_bytes)


def cycle_cost(draft_tokens: int, relative_cost: float) -> float:
    """Cost of a cycle, that of one token of the student alone being 1."""
    return 1 + draft_tokens * relative_cost


def expected_tokens(draft_tokens: int, accepted: float = ASSUMED_ACCEPTED) -> float:
    """Mean tokens of a cycle whose drafts are accepted independently (Leviathan et al., eq. 1)."""
    return sum(accepted**number for number in range(draft_tokens + 1))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is sampled from in place of a token that was not accepted, (B, C), not normalized."""
    rest = (p - q).clamp_min(0)
    # Nothing is left where both are equal, which rounding alone can reach.
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def _leading(accepted: Tensor) -> Tensor:
    """How many are true before the first false one, (B, K) bool -> (B,)."""
    return accepted.int().cumprod(dim=1).sum(dim=1)
