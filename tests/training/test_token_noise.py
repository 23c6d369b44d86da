"""Random token replacement in the student's input."""

import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.training.token_noise import add_token_noise
from tests.training.runs import N, student_config


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


@pytest.mark.slow
def test_noise_on_targets_or_all_images(tokens, tmp_path):
    for scope in ("targets", "all"):
        run = build_run(
            student_config(
                tokens, 1, "module.token_noise=1.0", f"module.token_noise_on={scope}",
                f"output_dir={tmp_path}",
            )
        )  # fmt: skip
        ids = torch.zeros(300, 4 * N, dtype=torch.int64)
        batch = {"input_ids": ids, "images_per_example": torch.full((300,), 2)}
        noisy = run.module.prepare_batch(batch)[0] != 0
        changed = [bool(each.any()) for each in noisy.split(N, dim=1)]
        assert changed == [scope == "all", True, scope == "all", True]
