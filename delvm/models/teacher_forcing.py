"""Teacher-forced numbers: how well a student predicts each next token of a true sentence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.transformer import Transformer

# Logits held at once: 64 MB in float32, whatever the vocabulary and the length of a sentence are.
LOGITS = 1 << 24


@torch.no_grad()
def next_token(
    student: Transformer, ids: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each next token, and whether it was the likeliest.

    Args:
        student: In evaluation mode.
        ids: Sentences (B, T) int64.
        documents: (B, T - 1), as of `Transformer.hidden`.

    Returns:
        losses (B, T - 1) float32 in nats and hits (B, T - 1) bool. The first token of a sentence
        has nothing before it and is not predicted.
    """
    hidden = student.hidden(ids[:, :-1], documents=documents).flatten(0, 1)
    truths = ids[:, 1:].flatten()
    rows = max(1, LOGITS // student.config.vocab_size)
    losses, hits = [], []
    for part, truth in zip(hidden.split(rows), truths.split(rows), strict=True):
        logits = student.head(part).float()
        losses.append(F.cross_entropy(logits, truth, reduction="none"))
        hits.append(logits.argmax(-1) == truth)
    shape = (len(ids), ids.shape[1] - 1)
    return torch.cat(losses).view(shape), torch.cat(hits).view(shape)
