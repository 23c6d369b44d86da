"""Losses over tokens.

Notation:
    B batch    T tokens    V vocabulary    N tokens a picture
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_weights(length: int, tokens_per_image: int, input_weight: float) -> Tensor:
    """Weight (T - 1,) of each predicted token of a sentence of pairs, of ``length`` T tokens.

    Pictures alternate between inputs (weight ``input_weight``) and targets (weight 1). The paper
    weighs all alike. In a small model inputs, which are photographs and hard to predict, would
    otherwise take most of the capacity.
    """
    picture = torch.arange(1, length) // tokens_per_image
    return torch.where(picture % 2 == 0, input_weight, 1.0)


def misread(ids: Tensor, tokens_per_image: int, share: float, vocab_size: int) -> Tensor:
    """Ids (B, T) as a student reads them when it must not trust its own answer too far.

    In each target picture a part of the tokens, drawn anew from 0 to ``share``, is replaced by
    random codes. A student that has only ever read true answers follows the tokens it has drawn
    rather than the query, and one wrong colour spreads over the picture.
    """
    rows, length = ids.shape
    picture = torch.arange(length, device=ids.device) // tokens_per_image
    rates = share * torch.rand(rows, int(picture[-1]) + 1, device=ids.device)
    swapped = (torch.rand(ids.shape, device=ids.device) < rates[:, picture]) & (picture % 2 == 1)
    return torch.where(swapped, torch.randint_like(ids, vocab_size), ids)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (B, T) under the weights (T,)."""
    return (values * weights).sum() / (weights.sum() * values.shape[0])


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Weighted mean next-token loss in nats.

    Args:
        logits: (B, T, V).
        targets: (B, T) int64.
        weights: (T,).
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition, which keeps logits from drifting.
    """
    logits = logits.float()
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(targets.shape)
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return weighted_mean(losses, weights)


def distillation(
    logits: Tensor, teacher: Tensor, weights: Tensor, temperature: float, inverse: bool
) -> Tensor:
    """T^2 x KL(teacher || student), or KL(student || teacher) when ``inverse``; weighted mean.

    Args:
        logits, teacher: (B, T, V).
        weights: (T,).
        temperature: T; both distributions are softened by it (Hinton et al. 2015).
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    guide = F.log_softmax(teacher.float() / temperature, dim=-1)
    p, q = (student, guide) if inverse else (guide, student)
    divergence = (p.exp() * (p - q)).sum(-1)  # (B, T)
    return temperature**2 * weighted_mean(divergence, weights)
