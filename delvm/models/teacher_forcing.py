"""Teacher-forced evaluation: how well a student predicts each next token of a given sentence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.protocols import StudentNet

# Logits in memory at a time, whatever the vocabulary and the sentence length: 64 MB in float32.
MAX_LOGITS = 1 << 24


@torch.no_grad()
def next_token_nll(
    student: StudentNet, input_ids: Tensor, document_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each next token, and whether it was the most likely one.

    Args:
        student: in evaluation mode.
        input_ids: sentences (B, T) int64.
        document_ids: (B, T - 1), as in `Transformer.forward_hidden`.

    Returns:
        nll (B, T - 1) float32 in nats and correct (B, T - 1) bool. The first token of a sentence
        has no context and is not predicted.
    """
    hidden = student.forward_hidden(input_ids[:, :-1], document_ids=document_ids).flatten(0, 1)
    targets = input_ids[:, 1:].flatten()
    rows = max(1, MAX_LOGITS // student.vocab_size)
    nll, correct = [], []
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    for hidden_chunk, target_chunk in chunks:
        logits = student.head(hidden_chunk).float()
        nll.append(F.cross_entropy(logits, target_chunk, reduction="none"))
        correct.append(logits.argmax(-1) == target_chunk)
    shape = (len(input_ids), input_ids.shape[1] - 1)
    return torch.cat(nll).view(shape), torch.cat(correct).view(shape)
