"""Losses over tokens.

Notation:
    B batch    T tokens    V vocabulary    N tokens a picture
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def targets(pictures: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """Which tokens of sentences are of targets: (B, T) bool.

    In pairs every second picture is; of clips, tuples and single pictures all are.

    Args:
        pictures: (B,) pictures an example, k.
        length: tokens a sentence, T.
        tokens_per_image: N.
    """
    number = torch.arange(length, device=pictures.device) // tokens_per_image  # (T,)
    return (pictures[:, None] != 2) | (number % 2 == 1)


def documents(pictures: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """The document that each token of a sentence belongs to: (B, T) int64.

    Single pictures (k = 1) have nothing to do with each other, so each is a document of its own;
    any other sentence is one document.

    Args:
        pictures, length, tokens_per_image: as for `targets`.
    """
    number = torch.arange(length, device=pictures.device) // tokens_per_image
    return torch.where(pictures[:, None] == 1, number, 0)


def token_weights(is_target: Tensor, input_weight: float, document: Tensor | None) -> Tensor:
    """Weight (B, T - 1) of each predicted token of sentences.

    Tokens of inputs have the weight ``input_weight``, those of targets 1. The paper weighs all
    alike. In a small model inputs, which are photographs and hard to predict, would otherwise take
    most of the capacity. The first token of a document is predicted from nothing: weight 0.

    Args:
        is_target: (B, T), from `targets`.
        document: (B, T), from `documents`; None = one document a sentence.
    """
    weights = torch.where(is_target[:, 1:], 1.0, input_weight)
    return weights if document is None else weights * (document[:, 1:] == document[:, :-1])


def misread(
    ids: Tensor, is_target: Tensor, tokens_per_image: int, share: float, vocab_size: int
) -> Tensor:
    """Ids (B, T) as a student reads them when it must not trust its own answer too far.

    In each target picture a part of the tokens, drawn anew from 0 to ``share``, is replaced by
    random codes. A student that has only ever read true answers follows the tokens it has drawn
    rather than the query, and one wrong colour spreads over the picture.
    """
    rows, length = ids.shape
    picture = torch.arange(length, device=ids.device) // tokens_per_image
    rates = share * torch.rand(rows, int(picture[-1]) + 1, device=ids.device)
    swapped = (torch.rand(ids.shape, device=ids.device) < rates[:, picture]) & is_target
    return torch.where(swapped, torch.randint_like(ids, vocab_size), ids)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (B, T) under weights (B, T)."""
    return (values * weights).sum() / weights.sum()


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
        weights: (B, T).
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
        weights: (B, T).
        temperature: T; both distributions are softened by it (Hinton et al. 2015).
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    guide = F.log_softmax(teacher.float() / temperature, dim=-1)
    p, q = (student, guide) if inverse else (guide, student)
    divergence = (p.exp() * (p - q)).sum(-1)  # (B, T)
    return temperature**2 * weighted_mean(divergence, weights)
