"""Prompting with prompts that are computed once, and shared by all queries that follow them.

The pairs of a prompt are the same for all queries. `Engine` runs them through the student once, as
one row, and keeps their keys and values: queries in a batch attend to the same ones, and so do
later calls with the same pairs, as long as the weights are the same.

With a ``draft``, a small student that proposes tokens, answers of a large student come faster, see
`delvm.inference.speculative`.

Notation:
    B queries    Q tokens of a query    P tokens of a prompt    M prompts that vote
    N new tokens    C codebook size
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.inference.decoding import GREEDY, Decoding, SamplingConfig
from delvm.inference.generation import (
    Rows,
    decode_tokens,
    stream_tokens,
    without_gradients,
)
from delvm.inference.prefix_cache import PrefixCache
from delvm.inference.speculative import (
    Speculation,
    SpeculativeDecoder,
    StudentContexts,
    cycle_cost,
    expected_tokens,
    relative_cost,
)
from delvm.inference.static_step import StaticStep
from delvm.models.attention import KVCache
from delvm.models.protocols import StudentNet
from delvm.models.token_space import num_image_tokens

DRAFT_TOKENS = 4
MAX_PREFIXES = 4  # prompts that are kept; the least recently used goes first


class Engine:
    """Generates with one student, and a draft where one is given.

    Attributes:
        speculation: what the draft gave so far.
        relative_cost: of a call of the draft, that of the student being 1; estimated from the
            weights. Samples are drafted where it promises a gain; 0 always does.
    """

    def __init__(
        self,
        student: StudentNet,
        max_prefixes: int = MAX_PREFIXES,
        *,
        draft: StudentNet | None = None,
        draft_tokens: int = DRAFT_TOKENS,
        compile: bool = False,
    ) -> None:
        """
        Args:
            student: in evaluation mode. One without a key-value cache that takes a ``prefix`` is
                given the complete rows.
            max_prefixes: prompts whose keys and values are kept; 0 keeps none between calls.
            draft: a smaller student of the same tokenizer, in evaluation mode.
            draft_tokens: tokens that the draft proposes before the student checks them, at least 1.
            compile: compile the step of one token, see `delvm.inference.static_step`. It takes a
                minute for each size of a batch, so it is for many answers.

        Raises:
            UserError: the draft cannot be one of this student's, or the student has no key-value
                cache and cannot be compiled.
        """
        self.student, self.draft, self.draft_tokens = student, draft, draft_tokens
        self._prefixes = PrefixCache(student, max_prefixes)
        self.speculation, self.relative_cost = Speculation(), 0.0
        self._step = StaticStep() if compile else None
        if compile:
            _check_cache(student, "student", "compile=false")
        if draft is not None:
            _check_draft(student, draft, draft_tokens)
            self.relative_cost = relative_cost(_weight_bytes(draft), _weight_bytes(student))
            self._draft_prefixes = PrefixCache(draft, max_prefixes)

    @property
    def prefills(self) -> int:
        """Prompts that the student has read."""
        return self._prefixes.prefills

    @without_gradients
    def generate(
        self,
        prompts: Sequence[Tensor],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        *,
        row_ids: Sequence[int] | None = None,
        codebook: Tensor | None = None,
    ) -> Tensor:
        """Continue each query, after prompts that are the same for all queries.

        Args:
            prompts: one (P,) int64, which may be empty; or M, of any lengths, that vote on each
                token by the mean of their log-probabilities.
            queries: (B, Q) int64, Q >= 1.
            max_new_tokens: N.
            sampling: how each token is chosen.
            row_ids, codebook: as of `delvm.inference.generation.decode_tokens`.

        Returns:
            ids (B, N) int64.

        Raises:
            ValueError: prompt, query and answer exceed the student's context.
        """
        contexts = self._after_prompts(prompts, queries, max_new_tokens)
        return self._decode(contexts, queries, max_new_tokens, sampling, row_ids, codebook)

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Tensor],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        *,
        row_ids: Sequence[int] | None = None,
        codebook: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """As `generate`, one token of each query at a time; without the draft.

        Streams may be interleaved, unless the engine is compiled.

        Yields:
            ids (B,) int64, N times.

        Raises:
            ValueError: as `generate`, before the first token.
        """
        contexts = self._after_prompts(prompts, queries, max_new_tokens)
        if self._step is not None:
            self._step.begin()
        student = self._combined(self._prefixes, contexts, queries, max_new_tokens, sampling)
        yield from stream_tokens(
            student.contexts,
            max_new_tokens,
            sampling,
            row_ids=row_ids,
            codebook=codebook,
            combine=student.combine if len(student.contexts) > 1 else None,
        )

    @without_gradients
    def generate_each(
        self,
        prompts: Sequence[Sequence[Tensor]],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        *,
        row_ids: Sequence[int] | None = None,
        codebook: Tensor | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Continue each query after prompts of its own; queries are batched by length.

        Args:
            prompts: M lists that vote, as for `generate`; entry b of each, (P,) int64 of any
                length, belongs to query b.
            queries, max_new_tokens, sampling, row_ids, codebook: as for `generate`.
            batch_size: queries that are answered at once.

        Returns:
            ids (B, N) int64.

        Raises:
            ValueError: prompt, query and answer exceed the student's context.
        """
        numbers = range(len(queries)) if row_ids is None else row_ids
        answers = queries.new_empty(len(queries), max_new_tokens)
        by_length: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row in range(len(queries)):
            by_length[tuple(len(each[row]) for each in prompts)].append(row)
        for same_length in by_length.values():
            for start in range(0, len(same_length), batch_size):
                rows = same_length[start : start + batch_size]
                batch = queries[rows]
                complete = [
                    torch.cat((torch.stack([each[row] for row in rows]), batch), dim=1)
                    for each in prompts
                ]

                def contexts(
                    prefixes: PrefixCache, complete: list[Tensor] = complete
                ) -> list[Rows]:
                    return [self._rows(prefixes.student, each, max_new_tokens) for each in complete]

                ids = [numbers[row] for row in rows]
                answers[rows] = self._decode(
                    contexts, batch, max_new_tokens, sampling, ids, codebook
                )
        return answers

    def _decode(
        self,
        contexts: Callable[[PrefixCache], list[Rows]],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig,
        row_ids: Sequence[int] | None,
        codebook: Tensor | None,
    ) -> Tensor:
        if self._step is not None:
            self._step.begin()
        student = self._combined(self._prefixes, contexts, queries, max_new_tokens, sampling)
        if self.draft is not None and self._draft_pays(len(queries), max_new_tokens, sampling):
            decoder = SpeculativeDecoder(
                student,
                self._combined(self._draft_prefixes, contexts, queries, max_new_tokens, sampling),
                sampling,
                draft_tokens=self.draft_tokens,
                relative_cost=self.relative_cost,
                speculation=self.speculation,
                codebook=codebook,
                static=self._step is not None,
            )
            return decoder.generate(queries[:, -1], max_new_tokens, row_ids)
        return decode_tokens(
            student.contexts,
            max_new_tokens,
            sampling,
            row_ids=row_ids,
            codebook=codebook,
            combine=student.combine if len(student.contexts) > 1 else None,
        )

    def _combined(
        self,
        prefixes: PrefixCache,
        contexts: Callable[[PrefixCache], list[Rows]],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig,
    ) -> StudentContexts:
        """The contexts of the prompts, that of no prompt for guidance, and how they combine."""
        guidance = sampling.guidance

        def combine(logits: list[Tensor]) -> Tensor:
            return vote(logits) if guidance == 1 else guide(vote(logits[:-1]), logits[-1], guidance)

        rows = contexts(prefixes)
        if guidance != 1:
            rows.append(self._rows(prefixes.student, queries, max_new_tokens))
        return StudentContexts(rows, combine)

    def _draft_pays(self, rows: int, max_new_tokens: int, sampling: SamplingConfig) -> bool:
        """Whether to use the draft for a batch; a sample must not depend on the clock."""
        timing = self.speculation.timings.get(rows)
        if sampling.decoding is Decoding.sample:
            cost = cycle_cost(self.draft_tokens, self.relative_cost)
            pays = expected_tokens(self.draft_tokens) > cost
        else:
            pays = timing is None or timing.pays()
        self.speculation.fallbacks += not pays
        return pays and min(rows, max_new_tokens) > 0

    def _after_prompts(
        self, prompts: Sequence[Tensor], queries: Tensor, max_new_tokens: int
    ) -> Callable[[PrefixCache], list[Rows]]:
        """The contexts of queries (B, Q) after each prompt (P,), of student or draft."""

        def contexts(prefixes: PrefixCache) -> list[Rows]:
            return [self._context(prefixes, each, queries, max_new_tokens) for each in prompts]

        return contexts

    def _context(
        self, prefixes: PrefixCache, prompt: Tensor, queries: Tensor, max_new_tokens: int
    ) -> Rows:
        """Queries (B, Q) after a prompt (P,), whose keys and values they share where possible."""
        student = prefixes.student
        if prefixes.can_share and len(prompt):
            # Refused before the prompt is computed.
            needed = len(prompt) + queries.shape[1] + max_new_tokens
            if needed > (limit := student.max_seq_len):
                raise ValueError(f"{needed} tokens exceed max_seq_len {limit}")
            return self._rows(student, queries, max_new_tokens, prefixes.get(prompt))
        complete = torch.cat((prompt.expand(len(queries), -1), queries), dim=1)
        return self._rows(student, complete, max_new_tokens)

    def _rows(
        self, student: StudentNet, ids: Tensor, max_new_tokens: int, prefix: KVCache | None = None
    ) -> Rows:
        return Rows(student, ids, max_new_tokens, prefix, self._step)


def _weight_bytes(student: StudentNet) -> int:
    return sum(int(each.nbytes) for each in student.state_dict().values())


def _check_draft(student: StudentNet, draft: StudentNet, draft_tokens: int) -> None:
    """Raise a UserError if a draft cannot propose tokens to a student."""
    if draft_tokens < 1:
        raise UserError(f"draft_tokens={draft_tokens} is below 1: set draft_tokens=1 or more")
    given, needed = num_image_tokens(draft), num_image_tokens(student)
    if given != needed:
        raise UserError(f"{given} codes (draft) != {needed} codes (student): set draft=PATH")
    if draft.max_seq_len < student.max_seq_len:
        raise UserError(
            f"the draft's context of {draft.max_seq_len} tokens is below the student's "
            f"{student.max_seq_len}: set draft=PATH"
        )
    for role, model in (("student", student), ("draft", draft)):
        _check_cache(model, role, "draft=null")


def _check_cache(model: StudentNet, role: str, fix: str) -> None:
    make = getattr(model, "make_kv_cache", None)
    if make is None or not isinstance(make(1, 1), KVCache):
        raise UserError(f"{role} {type(model).__name__} has no key-value cache of ours: set {fix}")


def vote(logits: Sequence[Tensor]) -> Tensor:
    """Mean log-probabilities (B, C) of several logits (B, C), float32; one alone stays as it is."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.float().log_softmax(-1) for each in logits]).mean(0)


def guide(logits: Tensor, without_prompt: Tensor, guidance: float) -> Tensor:
    """Log-probabilities without the prompt plus ``guidance`` times what the prompt changes, (B, C).

    0 ignores the prompt, 1 is the prompt alone, and above 1 its effect is exaggerated.
    """
    base = without_prompt.float().log_softmax(-1)
    return base + guidance * (logits.float().log_softmax(-1) - base)
