"""Prompting with prompts that are computed once, and shared by all queries that follow them.

The pairs of a prompt are the same for all queries. `Engine` runs them through the student once, as
one row, and keeps their keys and values: queries in a batch attend to the same ones, and so do
later calls with the same pairs, as long as the weights are the same.

Notation:
    B queries    Q tokens of a query    P tokens of a prompt    M prompts that vote
    N new tokens    C codebook size
"""

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from delvm.inference.decoding import GREEDY, SamplingConfig
from delvm.inference.generation import Rows, decode_tokens
from delvm.models.protocols import StudentNet

MAX_PREFIXES = 4  # prompts that are kept; the least recently used goes first


class Engine:
    """Generates with one student."""

    def __init__(self, student: StudentNet, max_prefixes: int = MAX_PREFIXES) -> None:
        """
        Args:
            student: in evaluation mode. One without a key-value cache that takes a ``prefix`` is
                given the complete rows.
            max_prefixes: prompts whose keys and values are kept; 0 keeps none between calls.
        """
        self.student, self.max_prefixes = student, max_prefixes
        self._prefixes: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        make: Any = getattr(student, "make_kv_cache", None)
        self._can_share = make is not None and "prefix" in inspect.signature(make).parameters
        self.prefills = 0  # prompts that were computed

    @torch.inference_mode()
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
        contexts = [self._context(prompt, queries, max_new_tokens) for prompt in prompts]
        return self._decode(contexts, queries, max_new_tokens, sampling, row_ids, codebook)

    @torch.inference_mode()
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
                contexts = [
                    Rows(
                        self.student,
                        torch.cat((torch.stack([each[row] for row in rows]), batch), dim=1),
                        max_new_tokens,
                    )
                    for each in prompts
                ]
                ids = [numbers[row] for row in rows]
                answers[rows] = self._decode(
                    contexts, batch, max_new_tokens, sampling, ids, codebook
                )
        return answers

    def _context(self, prompt: Tensor, queries: Tensor, max_new_tokens: int) -> Rows:
        """Queries (B, Q) after a prompt (P,), whose keys and values they share where possible."""
        if self._can_share and len(prompt):
            # Refused before the prompt is computed.
            needed = len(prompt) + queries.shape[1] + max_new_tokens
            if needed > (limit := self.student.max_seq_len):
                raise ValueError(f"{needed} tokens exceed max_seq_len {limit}")
            return Rows(self.student, queries, max_new_tokens, self._prefix(prompt))
        complete = torch.cat((prompt.expand(len(queries), -1), queries), dim=1)
        return Rows(self.student, complete, max_new_tokens)

    def _decode(
        self,
        contexts: list[Rows],
        queries: Tensor,
        max_new_tokens: int,
        sampling: SamplingConfig,
        row_ids: Sequence[int] | None,
        codebook: Tensor | None,
    ) -> Tensor:
        guidance = sampling.guidance
        if guidance != 1:
            contexts = [*contexts, Rows(self.student, queries, max_new_tokens)]

        def combine(logits: list[Tensor]) -> Tensor:
            return vote(logits) if guidance == 1 else guide(vote(logits[:-1]), logits[-1], guidance)

        return decode_tokens(
            contexts,
            max_new_tokens,
            sampling,
            row_ids=row_ids,
            codebook=codebook,
            combine=combine if len(contexts) > 1 else None,
        )

    def _prefix(self, prompt: Tensor) -> Any:
        """The cache of a prompt (P,): one that is kept, or computed now."""
        # Tensors made in inference mode count no changes; there the address has to do.
        weights = tuple(
            (each.data_ptr(), None if each.is_inference() else each._version)
            for each in self.student.parameters()
        )
        key = (prompt.cpu().numpy().tobytes(), weights)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        student: Any = self.student
        cache = student.make_kv_cache(1, len(prompt))
        student.forward_hidden(prompt[None], cache)
        self.prefills += 1
        self._prefixes[key] = cache
        while len(self._prefixes) > max(1, self.max_prefixes):
            self._prefixes.popitem(last=False)
        return cache if self.max_prefixes else self._prefixes.pop(key)


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
