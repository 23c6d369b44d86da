"""Random token replacement in the student's input."""

import pytest
import torch

from delvm.training.token_noise import add_token_noise


def test_token_noise_replaces_target_tokens_only():
    torch.manual_seed(0)
    ids = torch.zeros(400, 4 * 8 - 1, dtype=torch.int64)
    is_target = torch.arange(31) // 8 % 2 == 1
    mask = is_target.expand(400, -1)
    noisy = add_token_noise(ids, mask, 8, 1.0, 1000)
    replaced = noisy != ids
    assert not replaced[:, ~is_target].any()
    assert replaced[:, is_target].float().mean().item() == pytest.approx(0.5, abs=0.03)
    # rates differ per image: their spread is that of a uniform fraction
    assert replaced[:, 8:16].float().mean(1).std() > 0.25
    assert noisy.max() < 1000 and not ids.any()
    assert add_token_noise(ids, mask, 8, 0.2, 1000)[:, is_target].ne(0).float().mean() < 0.12
