"""The ways to choose the next token from logits.

Notation:
    B rows    V vocabulary size    C codebook size
"""

import torch
from torch import Tensor


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


def deterministic_ids(logits: Tensor, codebook: Tensor | None) -> Tensor:
    """Ids (B,): `mean_embedding_ids` with a codebook, and the most likely ones without."""
    return logits.argmax(-1) if codebook is None else mean_embedding_ids(logits, codebook)


def sample_from_uniform(probs: Tensor, uniform: Tensor) -> Tensor:
    """Sample ids (B,) by inverting the cumulative distribution of probs (B, V) at uniform (B,)."""
    cdf = probs.double().cumsum(-1)
    ids = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    return ids.clamp_max(probs.shape[-1] - 1)
