"""Losses over tokens, and their computation without ever holding all logits."""

from delvm.training.losses.batch import batch_sums, trained_parts
from delvm.training.losses.chunked import (
    LOSS_CHUNK_ELEMENTS,
    MAX_LOGITS_BYTES,
    LossFn,
    chunked_linear_loss,
    chunked_linear_map,
)
from delvm.training.losses.classes import CodeClusters, TopK
from delvm.training.losses.distillation import DistillationLoss, KLDirection
from delvm.training.losses.divergences import JensenShannon, KLDivergence, kl_divergence
from delvm.training.losses.hidden_states import HiddenDistance, HiddenStateMatching
from delvm.training.losses.on_policy import OnPolicyLoss
from delvm.training.losses.selection import SelectBy, TokenSelection
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
    "CodeClusters",
    "CrossEntropyLoss",
    "DistillationLoss",
    "HiddenDistance",
    "HiddenStateMatching",
    "JensenShannon",
    "KLDirection",
    "KLDivergence",
    "LOSS_CHUNK_ELEMENTS",
    "LossFn",
    "MAX_LOGITS_BYTES",
    "OnPolicyLoss",
    "SelectBy",
    "TokenLoss",
    "TokenSelection",
    "TopK",
    "batch_sums",
    "chunked_linear_loss",
    "chunked_linear_map",
    "cross_entropy",
    "cross_entropy_sum",
    "document_ids",
    "kl_divergence",
    "metric_names",
    "target_mask",
    "token_weights",
    "top_k_kl_divergence",
    "top_k_log_probs",
    "trained_parts",
]
