"""Draw tokens from a student, one at a time, on top of a key-value cache.

Notation:
    B rows    T tokens of the prefix    V vocabulary    N tokens drawn
"""

import torch
from torch import Tensor

from delvm.models.transformer import Transformer


def filtered(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (B, V) after temperature, then top-k, then top-p (nucleus).

    The most likely token is always kept, and so is every token tied with the last one kept by
    top-k.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of the more likely ones
        dropped = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, order, before >= top_p)
        probabilities = probabilities.masked_fill(dropped, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def nearest_to_expected(logits: Tensor, codes: Tensor) -> Tensor:
    """Ids (B,) of the codes nearest to what is expected of logits (B, V), codes (C, d), C <= V.

    The likeliest token is the best guess of a token; of a picture, whose worth is measured by the
    distance of its pixels, the mean is. Tokens beyond the codebook (BOS, EOS) are left out.
    """
    expected = logits[:, : len(codes)].float().softmax(-1) @ codes  # (B, d)
    return torch.cdist(expected[None], codes[None])[0].argmin(-1)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B,) by inverting the cumulative distribution of probabilities (B, V) at uniform (B,)."""
    cumulative = probabilities.double().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(
        probabilities.shape[-1] - 1
    )


@torch.inference_mode()
def generate(
    student: Transformer,
    prefix: Tensor,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    first_row: int = 0,
    codes: Tensor | None = None,
) -> Tensor:
    """Continue each row of ``prefix`` by ``count`` tokens, all of them codes.

    Ids that are none of a picture's (``student.space``) are never drawn, as LVM prompts its
    students.

    Args:
        student: in evaluation mode.
        prefix: (B, T) int64.
        count: N.
        temperature: 0 takes the most likely token each time, or see ``codes``.
        top_k, top_p: keep the k most likely tokens, the fewest that hold a mass of p.
        seed, first_row: row r draws from a generator seeded by (seed, first_row + r), so an
            answer does not depend on the batch it is drawn in.
        codes: (C, d), the tokenizer's; with temperature 0, take each time the code nearest to the
            expected one.

    Returns:
        ids (B, N) int64.

    Raises:
        ValueError: prefix and count exceed the student's context.
    """
    rows, length = prefix.shape
    if length + count > student.config.context:
        raise ValueError(f"{length} + {count} tokens for a context of {student.config.context}")
    uniform = _uniform(rows, count, seed, first_row).to(prefix.device) if temperature > 0 else None
    cache = student.new_cache(rows, length + count)
    answer = torch.empty(rows, count, dtype=torch.int64, device=prefix.device)
    step = prefix
    for i in range(count):
        logits = student.head(student.hidden(step, cache)[:, -1])[:, : student.space.codes]
        if uniform is not None:
            chosen = draw(filtered(logits, temperature, top_k, top_p), uniform[:, i])
        elif codes is not None:
            chosen = nearest_to_expected(logits, codes)
        else:
            chosen = logits.argmax(-1)
        answer[:, i] = chosen
        step = chosen[:, None]
    return answer


def _uniform(rows: int, count: int, seed: int, first_row: int) -> Tensor:
    """Numbers in [0, 1), (rows, count) float64, each row from a generator of its own."""
    numbers = []
    for row in range(first_row, first_row + rows):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        numbers.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(numbers)
