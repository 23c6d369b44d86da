"""Distributions of a teacher by its k most likely tokens, with all others as one more class.

Notation:
    m rows (predicted tokens)    V vocabulary    k tokens of each row that are kept
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k_log_probs(
    teacher_logits: Tensor, k: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A teacher's k most likely tokens, and their log-probabilities among all V.

    Args:
        teacher_logits: (m, V) float32.
        k: below V.
        temperature: T > 0, which softens the distribution over all V.

    Returns:
        ids (m, k) int64, most likely first, and log-probabilities (m, k) float32.
    """
    log_probs, ids = F.log_softmax(teacher_logits / temperature, dim=-1).topk(k, dim=-1)
    return ids, log_probs


def with_tail(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (m, k + 1) of chosen tokens, and last of all others together.

    Args:
        log_probs: (m, V) float32, of all tokens.
        ids: (m, k) int64, each at most once per row; k is below V.
    """
    others = log_probs.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat((log_probs.gather(-1, ids), others), dim=-1)


def append_tail(log_probs: Tensor) -> Tensor:
    """Log-probabilities (m, k + 1): those of chosen tokens (m, k), and last what they leave of 1.

    What rounding makes of a tail of nothing, or of less, is the smallest float32 step below 1.
    """
    eps = torch.finfo(torch.float32).eps
    tail = (1 - log_probs.float().exp().sum(-1, keepdim=True)).clamp(min=eps).log()
    return torch.cat((log_probs.float(), tail), dim=-1)


def top_k_kl_divergence(
    logits: Tensor,
    teacher_ids: Tensor,
    teacher_log_probs: Tensor,
    temperature: float = 1.0,
    reverse: bool = False,
) -> Tensor:
    """T^2 x KL(teacher || student) per token (m,), over k tokens and all others as one class.

    It is at most that over all V tokens, and needs no more of the teacher than its k most likely
    tokens: these may be stored, or be from `top_k_log_probs`.

    Args:
        logits: (m, V) float32, the student's.
        teacher_ids: (m, k) int64, each at most once per row; k is below V.
        teacher_log_probs: (m, k) of these tokens among all V, or (m, k + 1) with that of all
            others last. At this temperature: from others it cannot be computed.
        temperature: T > 0; it softens the student's distribution.
        reverse: whether student and teacher swap roles.
    """
    student = with_tail(F.log_softmax(logits / temperature, dim=-1), teacher_ids)
    has_tail = teacher_log_probs.shape[-1] > teacher_ids.shape[-1]
    teacher = teacher_log_probs.float() if has_tail else append_tail(teacher_log_probs)
    p, q = (student, teacher) if reverse else (teacher, student)
    return temperature**2 * (p.exp() * (p - q)).sum(-1)
