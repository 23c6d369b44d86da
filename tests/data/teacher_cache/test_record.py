"""Distributions survive storage, in at most 70 bytes per token."""

import numpy as np
import pytest
import torch

from delvm.data.teacher_cache.record import (
    bytes_per_token,
    dequantize,
    quantize,
    record_dtype,
)
from delvm.errors import UserError
from delvm.training.losses.top_k import top_k_kl_divergence, with_tail


def distributions(scale: float, rows: int = 512, vocab: int = 300, k: int = 16):
    """Ids and log-probabilities of the top k and the tail: flat for a small scale, peaked else."""
    logits = torch.randn(rows, vocab, generator=torch.manual_seed(0)) * scale
    log_probs = logits.log_softmax(-1)
    ids = log_probs.topk(k, dim=-1).indices
    return ids, with_tail(log_probs, ids)


def test_66_bytes_per_token_at_16():
    assert bytes_per_token(16) == 66
    sentence = record_dtype(2048, 16).itemsize
    assert sentence == 2047 * 66 + 4 and sentence / 2047 < 70


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 10.0, 100.0])
def test_probabilities_are_exact_to_1e_5(scale):
    _, log_probs = distributions(scale)
    codes, tail = quantize(log_probs.numpy())
    found = dequantize(codes, tail, "file")
    assert codes.dtype == np.uint16 and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.exp(found.astype(np.float64)).sum(-1) == pytest.approx(1, abs=1e-6)
    error = np.abs(np.exp(found) - log_probs.exp().numpy())
    assert error[:, 1:].max() < 8e-6 and error.max() < 2e-5
    assert np.sqrt((error**2).mean()) < 5e-6


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_divergence_and_gradient_are_nearly_exact(scale):
    """In the mean over tokens, and of each token; those of float16 log-probabilities are not."""
    ids, log_probs = distributions(scale)
    student = torch.randn(len(ids), 300, generator=torch.manual_seed(1)) * scale
    stored = torch.from_numpy(dequantize(*quantize(log_probs.numpy()), "file"))
    values, gradients = [], []
    for teacher in (log_probs, stored, log_probs.half().float()):
        logits = student.clone().requires_grad_()
        loss = top_k_kl_divergence(logits, ids, teacher)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        values.append(loss.mean().item())
        gradients.append(gradient)
    assert values[1] == pytest.approx(values[0], abs=4e-6)
    errors = [(each - gradients[0]).abs().max().item() for each in gradients[1:]]
    assert errors[0] < 1.5e-5 and errors[1] > 4 * errors[0]


@pytest.mark.parametrize("damage", ["nan", "above_one", "below_zero", "zero_code", "no_tail"])
def test_what_is_not_a_distribution_is_refused(damage):
    codes, tail = quantize(distributions(3.0)[1].numpy())
    if damage == "zero_code":
        codes[7, 3] = 0
    elif damage == "above_one":
        codes[7] = 65_535
    else:
        tail[7] = {"nan": np.nan, "below_zero": 0.5, "no_tail": -np.inf}[damage]
    with pytest.raises(UserError, match="x.npy is damaged: it holds no distributions"):
        dequantize(codes, tail, "x.npy")
