"""Losses over tokens, and their computation without ever holding all logits."""

from delvm.training.losses.chunked import (
    LOSS_CHUNK_ELEMENTS,
    MAX_LOGITS_BYTES,
    LossFn,
    chunked_linear_loss,
)
from delvm.training.losses.distillation import DistillationLoss, KLDirection, kl_divergence
from delvm.training.losses.tokens import (
    CrossEntropyLoss,
    TokenLoss,
    cross_entropy,
    cross_entropy_sum,
    document_ids,
    metric_names,
    target_mask,
    token_weights,
)
from delvm.training.losses.top_k import top_k_kl_divergence, top_k_log_probs

__all__ = [
    "LOSS_CHUNK_ELEMENTS",
    "MAX_LOGITS_BYTES",
    "CrossEntropyLoss",
    "DistillationLoss",
    "KLDirection",
    "LossFn",
    "TokenLoss",
    "chunked_linear_loss",
    "cross_entropy",
    "cross_entropy_sum",
    "document_ids",
    "kl_divergence",
    "metric_names",
    "target_mask",
    "token_weights",
    "top_k_kl_divergence",
    "top_k_log_probs",
]
