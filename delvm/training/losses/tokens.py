"""What a loss over tokens is, the weights of tokens, and their cross-entropy.

Notation:
    B batch    T tokens per sentence    V vocabulary    N tokens per image    C hidden dim
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
"""

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenLoss(Protocol):
    """What training asks of a loss: any class of this form can be ``module.loss``.

    A loss keeps no state, since it is called on a few rows at a time, and must be differentiable
    in the logits. It may name its values by an attribute ``metric_names: tuple[str, ...]``, one
    name per value, which are logged as ``train/NAME``; without it the first is logged as
    ``train/loss``.

    More is used where it exists (docs/extend.md): ``connect_codebook``, ``connect_networks``, and
    of a `torch.nn.Module` its buffers and parameters; ``batch_inputs`` and ``hidden_loss``, see
    `delvm.training.losses.batch`; ``denominators(weights, *inputs)`` (f,) that the values are
    divided by, where not all by the sum of weights.
    """

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor, *inputs: Tensor) -> Tensor:
        """Sums over rows.

        Args:
            logits: (m, V) float32.
            targets: (m,) int64, the tokens to predict.
            weights: (m,) float32, the weight of each token.
            inputs: what the module hands on besides; a distillation the teacher's hidden states
                (m, C) and its LM head (V, C).

        Returns:
            () or (f,): the loss to minimize first, then auxiliary metrics.
        """


def metric_names(loss_fn: object) -> tuple[str, ...]:
    """The names of a loss's values; ``("loss",)`` if it does not give any."""
    return cast(tuple[str, ...], getattr(loss_fn, "metric_names", ("loss",)))


class CrossEntropyLoss:
    """Weighted sum of the cross-entropy over tokens."""

    metric_names = ("loss",)

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        """
        Args:
            label_smoothing: fraction of the target spread evenly over the vocabulary, in [0, 1).
            z_loss: weight of the squared log-partition, which keeps logits from drifting.
        """
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = []
        if not 0 <= self.label_smoothing <= 1:
            errors.append(f"label_smoothing={self.label_smoothing} is a fraction: set it to 0.1")
        if self.z_loss < 0:
            errors.append(f"z_loss={self.z_loss} is below 0: set it to 0 or more")
        return errors

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The sum () over rows; arguments as for `cross_entropy_sum`."""
        return cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)


def target_mask(images_per_example: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """Mask (B, T) bool of the tokens that belong to target images.

    In pairs every second image is a target; in clips, tuples and single images all are.

    Args:
        images_per_example: (B,) images per example, k.
        length: tokens per sentence, T.
        tokens_per_image: N.
    """
    image = torch.arange(length, device=images_per_example.device) // tokens_per_image  # (T,)
    return (images_per_example[:, None] != 2) | (image % 2 == 1)


def document_ids(images_per_example: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """The document that each token of a sentence belongs to, (B, T) int64.

    Single images (k = 1) are unrelated, so each is a document by itself; any other sentence is
    one document.

    Args:
        images_per_example, length, tokens_per_image: as for `target_mask`.
    """
    image = torch.arange(length, device=images_per_example.device) // tokens_per_image
    return torch.where(images_per_example[:, None] == 1, image, 0)


def token_weights(is_target: Tensor, input_weight: float, documents: Tensor | None) -> Tensor:
    """Weight (B, T - 1) of each predicted token of sentences.

    Tokens of input images have the weight ``input_weight``, those of targets 1; the paper weighs
    all alike. In a small model input images, which are photographs and hard to predict, would
    otherwise take most of the capacity. The first token of a document has nothing to be predicted
    from: weight 0.

    Args:
        is_target: (B, T), from `target_mask`.
        input_weight: weight of the tokens of input images.
        documents: (B, T), from `document_ids`; None = one document per sentence. Tokens of a
            document below 0 are padding: weight 0.
    """
    # In float32 whatever the default dtype is, since they are summed.
    weights = input_weight + (1 - input_weight) * is_target[:, 1:].float()
    if documents is None:
        return weights
    return weights * ((documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0))


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Next-token loss (n,) in nats.

    Args:
        logits: (n, V) float32.
        targets: (n,) int64.
        label_smoothing: fraction of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition, which keeps logits from drifting.
    """
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return losses


def cross_entropy_sum(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Weighted sum () of `cross_entropy` over rows.

    Args:
        logits: (m, V) float32.
        targets: (m,) int64.
        weights: (m,), from `token_weights`.
        label_smoothing, z_loss: as for `cross_entropy`.
    """
    return (cross_entropy(logits, targets, label_smoothing, z_loss) * weights).sum()
