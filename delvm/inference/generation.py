"""The decoding loop: one or more rows of tokens are continued, one token at a time.

Notation:
    B rows    T tokens of a row    N new tokens    C codebook size
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from delvm.inference.decoding import GREEDY, Decoding, SamplingConfig
from delvm.inference.sampling import deterministic_ids, sample_from_uniform, top_k_top_p_probs
from delvm.inference.static_step import StaticStep
from delvm.models.protocols import StudentNet
from delvm.models.static_cache import StaticKVCache
from delvm.models.token_space import num_image_tokens

P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in inference mode, or as it is where the caller has turned gradients off.

    Sharded weights are gathered into tensors that are kept, and that training could not use if they
    were made in inference mode: generation during training is under `torch.no_grad`.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode() if torch.is_grad_enabled() else nullcontext():
            return function(*args, **kwargs)

    return call


class Rows:
    """Rows of tokens that one student continues, with a key-value cache where it has one.

    Ids outside the codebook (see ``student.token_space``) are never among the logits, as in LVM.
    """

    def __init__(
        self,
        student: StudentNet,
        ids: Tensor,
        max_new_tokens: int,
        prefix: Any = None,
        step: StaticStep | None = None,
    ) -> None:
        """
        Args:
            student: in evaluation mode. One without ``make_kv_cache`` reads its rows again for each
                token, which is slow.
            ids: (B, T) int64, T >= 1.
            max_new_tokens: how many tokens may follow.
            prefix: cache of one row of tokens before every row, see `delvm.inference.engine`.
            step: computes all tokens after the first one; None = as the first one.

        Raises:
            ValueError: all tokens together exceed the student's context.
        """
        past = 0 if prefix is None else prefix.length
        total = past + ids.shape[1] + max_new_tokens
        if total > (limit := student.max_seq_len):
            raise ValueError(
                f"{past + ids.shape[1]} + {max_new_tokens} tokens exceed max_seq_len {limit}"
            )
        self.student, self.ids, self._step = student, ids, step
        self._num_codes = num_image_tokens(student)
        self._context = past + ids.shape[1]
        self.cache: Any = None
        if (make_cache := getattr(student, "make_kv_cache", None)) is not None:
            shared = {} if prefix is None else {"prefix": prefix}
            self.cache = make_cache(len(ids), total, **shared)

    def first_logits(self) -> Tensor:
        """Logits (B, C) of the token after the rows, or after what was appended to them."""
        return self._logits(self.ids)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Append tokens (B, 1); logits (B, C) of the one after them."""
        if self.cache is None:
            self.ids = ids = torch.cat((self.ids, ids), dim=1)
        elif self._step is not None:
            return self.each_logits(ids)[:, -1]
        return self._logits(ids)

    def append(self, ids: Tensor) -> None:
        """Append tokens (B, 1), which the next `first_logits` reads."""
        self.ids = ids if self.cache is not None else torch.cat((self.ids, ids), dim=1)

    def each_logits(self, ids: Tensor) -> Tensor:
        """Append tokens (B, T) to a cache; logits (B, T, C) of the token after each of them."""
        logits: Tensor
        if self._step is not None:
            self.make_static()
            logits = self._step(self.student, ids, self.cache)
        else:
            logits = self.student.head(self.student.forward_hidden(ids, self.cache))
        return logits[..., : self._num_codes]

    def rewind(self, kept: Tensor) -> None:
        """Forget all but ``kept`` (B,) of the tokens after the context; -1 forgets one of those.

        Rows of different lengths need the cache of `make_static`.
        """
        self.cache.rewind(self._context + kept)

    def make_static(self) -> None:
        """Let rows have lengths of their own from now on, see `delvm.models.static_cache`."""
        if not isinstance(self.cache, StaticKVCache):
            make = StaticKVCache if self._step is None else self._step.take_over
            self.cache = make(self.cache.dequantized())

    def _logits(self, ids: Tensor) -> Tensor:
        hidden = self.student.forward_hidden(ids, self.cache)[:, -1]
        logits: Tensor = self.student.head(hidden)
        return logits[:, : self._num_codes]


def generate(
    student: StudentNet,
    prefix: Tensor,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
    *,
    row_ids: Sequence[int] | None = None,
    codebook: Tensor | None = None,
) -> Tensor:
    """Continue each row of ``prefix`` by ``max_new_tokens`` image tokens.

    Args:
        student: in evaluation mode.
        prefix: (B, T) int64.
        max_new_tokens: N; generation never stops earlier.
        sampling: how each token is chosen.
        row_ids, codebook: as of `decode_tokens`.

    Returns:
        ids (B, N) int64.

    Raises:
        ValueError: prefix and new tokens exceed the student's context, or no codebook is given.
    """
    with torch.inference_mode():
        rows = Rows(student, prefix, max_new_tokens)
        return decode_tokens([rows], max_new_tokens, sampling, row_ids=row_ids, codebook=codebook)


@without_gradients
def decode_tokens(
    contexts: Sequence[Rows],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    row_ids: Sequence[int] | None = None,
    codebook: Tensor | None = None,
    combine: Callable[[list[Tensor]], Tensor] | None = None,
) -> Tensor:
    """Generate tokens that continue the rows of several contexts at once.

    Args:
        contexts: each of B rows; row b of all contexts gets the same new tokens.
        max_new_tokens: N.
        sampling: how each token is chosen from the logits.
        row_ids: number of each row, B of them; a row samples with a random generator seeded by
            (seed, its number), so its tokens do not depend on the batch. None: 0 to B - 1.
        codebook: (C, d) of the tokenizer; needed by ``decoding=mean_embedding``.
        combine: logits (B, C) of each context -> those to choose from; None: there is one context.

    Returns:
        ids (B, N) int64.

    Raises:
        ValueError: no codebook is given where one is needed.
    """
    rows = contexts[0].ids
    ids = torch.empty(len(rows), max_new_tokens, dtype=torch.int64, device=rows.device)
    chosen = stream_tokens(
        contexts, max_new_tokens, sampling, row_ids=row_ids, codebook=codebook, combine=combine
    )
    for step, tokens in enumerate(chosen):
        ids[:, step] = tokens
    return ids


def stream_tokens(
    contexts: Sequence[Rows],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    row_ids: Sequence[int] | None = None,
    codebook: Tensor | None = None,
    combine: Callable[[list[Tensor]], Tensor] | None = None,
) -> Iterator[Tensor]:
    """As `decode_tokens`, one token of each row at a time, in the gradient mode of the caller.

    Yields:
        ids (B,) int64, N times.

    Raises:
        ValueError: as `decode_tokens`, before the first token.
    """
    method = sampling.decoding
    if method is Decoding.mean_embedding and codebook is None:
        raise ValueError("decoding=mean_embedding needs the tokenizer's codebook")
    count, device = len(contexts[0].ids), contexts[0].ids.device
    uniform = None
    if method is Decoding.sample:
        numbers = range(count) if row_ids is None else row_ids
        uniform = uniform_values(numbers, max_new_tokens, sampling.seed).to(device)
    used = codebook if method is Decoding.mean_embedding else None
    logits = [each.first_logits() for each in contexts]
    tokens = torch.empty(count, dtype=torch.int64, device=device)
    for step in range(max_new_tokens):
        if step:
            logits = [each.next_logits(tokens[:, None]) for each in contexts]
        chosen = logits[0] if combine is None else combine(logits)
        if uniform is not None:
            probs = top_k_top_p_probs(chosen, sampling.temperature, sampling.top_k, sampling.top_p)
            tokens = sample_from_uniform(probs, uniform[:, step])
        else:
            tokens = deterministic_ids(chosen, used)
        yield tokens


def uniform_values(row_ids: Sequence[int], count: int, seed: int) -> Tensor:
    """Uniform values in [0, 1), (B, count) float64, each row from its own generator."""
    values = []
    for row in row_ids:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        values.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(values)
