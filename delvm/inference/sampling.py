"""Autoregressive decoding with a key-value cache, and the ways to choose each token.

Notation:
    B rows    T prefix tokens    N new tokens    V vocabulary size    C codebook size
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from delvm.inference.decoding import Decoding, resolve_decoding
from delvm.models.protocols import StudentNet


def top_k_top_p_probs(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Probabilities (B, V) after temperature, then top-k, then top-p (nucleus).

    The most likely token always stays, and so does every token that ties with the last one kept by
    top-k.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        sorted_probs, order = probs.sort(dim=-1, descending=True)
        mass_before = sorted_probs.cumsum(-1) - sorted_probs  # of the more likely tokens
        dropped = torch.zeros_like(probs, dtype=torch.bool)
        dropped = dropped.scatter(-1, order, mass_before >= top_p)
        probs = probs.masked_fill(dropped, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def mean_embedding_ids(logits: Tensor, codebook: Tensor) -> Tensor:
    """Ids (B,) of the codes nearest to the expected embedding.

    The most likely token minimizes the expected number of wrong tokens. The mean embedding
    minimizes the expected squared distance in code space, which follows pixels more closely.

    Args:
        logits: (B, V), V >= C; tokens beyond the codebook (BOS, EOS) are ignored.
        codebook: (C, d).
    """
    expected = logits[:, : len(codebook)].float().softmax(-1) @ codebook  # (B, d)
    return torch.cdist(expected[None], codebook[None])[0].argmin(-1)


def sample_from_uniform(probs: Tensor, uniform: Tensor) -> Tensor:
    """Sample ids (B,) by inverting the cumulative distribution of probs (B, V) at uniform (B,)."""
    cdf = probs.double().cumsum(-1)
    ids = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    return ids.clamp_max(probs.shape[-1] - 1)


@torch.inference_mode()
def generate(
    student: StudentNet,
    prefix: Tensor,
    max_new_tokens: int,
    *,
    decoding: Decoding | str = Decoding.greedy,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    row_offset: int = 0,
    codebook: Tensor | None = None,
    prefix_cache: Any = None,
) -> Tensor:
    """Continue each row of ``prefix`` by ``max_new_tokens`` image tokens.

    Ids outside the codebook (see ``student.token_space``) are never generated, as in LVM. A student
    without ``make_kv_cache`` reads its sequence again for each token, which is slow.

    Args:
        student: in evaluation mode.
        prefix: (B, T) int64.
        max_new_tokens: N; generation never stops earlier.
        decoding: how each token is chosen, see `delvm.inference.decoding`.
        temperature: above 0 with ``decoding="sample"``, otherwise 0.
        top_k, top_p: sample from the k most likely tokens, and from the fewest tokens that
            together have the probability p.
        seed, row_offset: row r uses a random generator seeded by (seed, row_offset + r), so an
            answer does not depend on the batch it was generated in.
        codebook: (C, d) of the tokenizer; needed by ``decoding="mean_embedding"``.
        prefix_cache: of one row of tokens before every row, see `delvm.inference.engine`; T >= 1.

    Returns:
        ids (B, N) int64.

    Raises:
        ValueError: prefix and new tokens exceed the student's context, or no codebook is given.
        UserError: decoding and temperature contradict each other.
    """
    rows, length = prefix.shape
    past = 0 if prefix_cache is None else prefix_cache.length
    if past + length + max_new_tokens > (limit := student.max_seq_len):
        raise ValueError(f"{past + length} + {max_new_tokens} tokens exceed max_seq_len {limit}")
    method = resolve_decoding(decoding, temperature)
    if method is Decoding.mean_embedding and codebook is None:
        raise ValueError("decoding=mean_embedding needs the tokenizer's codebook")
    uniform = None
    if method is Decoding.sample:
        uniform = _uniform(rows, max_new_tokens, seed, row_offset).to(prefix.device)
    ids = torch.empty(rows, length + max_new_tokens, dtype=torch.int64, device=prefix.device)
    ids[:, :length] = prefix
    for end, logits in _next_token_logits(student, ids, length, prefix_cache):
        if uniform is not None:
            probs = top_k_top_p_probs(logits, temperature, top_k, top_p)
            ids[:, end] = sample_from_uniform(probs, uniform[:, end - length])
        elif method is Decoding.mean_embedding and codebook is not None:
            ids[:, end] = mean_embedding_ids(logits, codebook)
        else:
            ids[:, end] = logits.argmax(-1)
    return ids[:, length:]


def _next_token_logits(
    student: StudentNet, ids: Tensor, length: int, prefix_cache: Any
) -> Iterator[tuple[int, Tensor]]:
    """Yield (position, logits (B, C)) of each token after a prefix.

    The caller writes the token at that position before it asks for the next one.

    Args:
        ids: (B, T + N), of which the first ``length`` = T are known.
    """
    rows, max_length = ids.shape
    make_cache = getattr(student, "make_kv_cache", None)
    if prefix_cache is not None and make_cache is not None:
        cache = make_cache(rows, prefix_cache.length + max_length, prefix=prefix_cache)
    else:
        cache = None if make_cache is None else make_cache(rows, max_length)
    num_codes = num_image_tokens(student)
    start = 0  # of the tokens that are not in the cache
    for end in range(length, max_length):
        hidden = student.forward_hidden(ids[:, start:end], cache)[:, -1]
        yield end, student.head(hidden)[:, :num_codes]
        start = 0 if cache is None else end


def num_image_tokens(student: StudentNet) -> int:
    """The number of token ids that are codes of the tokenizer; special tokens come after them."""
    token_space = getattr(student, "token_space", None)
    return student.vocab_size if token_space is None else int(token_space.codebook_size)


def _uniform(rows: int, count: int, seed: int, row_offset: int) -> Tensor:
    """Uniform values in [0, 1), (rows, count) float64, each row from its own generator."""
    values = []
    for row in range(row_offset, row_offset + rows):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        values.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(values)
