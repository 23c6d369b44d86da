"""Teacher-forced numbers: how well a student predicts each next token of a true sentence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.transformer import Transformer

# Logits held at once: 64 MB in float32, whatever the vocabulary and the length of a sentence are.
MAX_LOGITS = 1 << 24


@torch.no_grad()
def next_token_nll(
    student: Transformer, input_ids: Tensor, document_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each next token, and whether it was the likeliest.

    Args:
        student: In evaluation mode.
        input_ids: sentences (B, T) int64.
        document_ids: (B, T - 1), as in `Transformer.forward_hidden`.

    Returns:
        losses (B, T - 1) float32 in nats and hits (B, T - 1) bool. The first token of a sentence
        has nothing before it and is not predicted.
    """
    hidden = student.forward_hidden(input_ids[:, :-1], document_ids=document_ids).flatten(0, 1)
    truths = input_ids[:, 1:].flatten()
    rows = max(1, MAX_LOGITS // student.config.vocab_size)
    losses, hits = [], []
    for part, truth in zip(hidden.split(rows), truths.split(rows), strict=True):
        logits = student.head(part).float()
        losses.append(F.cross_entropy(logits, truth, reduction="none"))
        hits.append(logits.argmax(-1) == truth)
    shape = (len(input_ids), input_ids.shape[1] - 1)
    return torch.cat(losses).view(shape), torch.cat(hits).view(shape)
