"""The codebook follows its features, and dead codes are replaced."""

import torch

from delvm.training.codebook_ema import CodebookEMA, DeadCodeReset


def nearest(z, codes):
    return torch.cdist(z, codes).argmin(1)


def test_codes_converge_to_their_features():
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    codes = torch.zeros(3, 2)
    ema = CodebookEMA(codes, decay=0.9, dead_code_after=20)
    for _ in range(150):
        z = centers[torch.randint(3, (64,))] + 0.1 * torch.randn(64, 2)
        ema.update(z, nearest(z, codes))
    assert torch.cdist(centers, codes).min(1).values.max() < 0.1


def test_dead_codes_are_moved_onto_features():
    torch.manual_seed(0)
    codes = torch.cat((torch.zeros(1, 2), torch.full((7, 2), 100.0)))
    ema = CodebookEMA(codes, decay=None, dead_code_after=3)
    usage = []
    for _ in range(4):
        z = torch.randn(32, 2)
        usage.append(ema.update(z, nearest(z, codes)).item())
    assert codes.abs().max() < 10
    assert ema.num_reset == 7
    assert usage[-1] > usage[-2]


def test_dead_code_reset_by_error_ignores_well_matched_features():
    def codes_near_rare_features(dead_code_reset):
        torch.manual_seed(0)
        codes = torch.cat((torch.zeros(1, 2), torch.full((8, 2), 100.0)))
        ema = CodebookEMA(codes, decay=None, dead_code_after=1, dead_code_reset=dead_code_reset)
        background, rare = 0.01 * torch.randn(1000, 2), torch.tensor([[5.0, 0.0]]).repeat(20, 1)
        z = torch.cat((background, rare))
        ema.update(z, nearest(z, codes))
        assert ema.num_reset == 8
        return int((codes[:, 0] > 4).sum())

    assert codes_near_rare_features(DeadCodeReset.random) <= 2  # 2% of the features
    assert codes_near_rare_features(DeadCodeReset.error) == 8


def test_dead_code_reset_by_error_when_all_errors_are_zero():
    codes = torch.cat((torch.zeros(1, 2), torch.full((8, 2), 100.0)))
    ema = CodebookEMA(codes, decay=None, dead_code_after=1, dead_code_reset=DeadCodeReset.error)
    z = torch.zeros(4, 2)  # fewer than there are dead codes
    ema.update(z, nearest(z, codes))
    assert ema.num_reset == 8 and codes.abs().max() < 1


def test_codebook_is_unchanged_without_decay_and_reset():
    codes = torch.randn(8, 2)
    before = codes.clone()
    ema = CodebookEMA(codes, decay=None, dead_code_after=None)
    for _ in range(200):
        ema.update(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(codes, before)
    assert ema.num_reset == 0


def test_unused_codes_stay_under_moving_averages():
    torch.manual_seed(0)
    codes = torch.randn(4, 2)
    ema = CodebookEMA(codes, decay=0.5, dead_code_after=None)
    ema.update(torch.randn(16, 2), torch.zeros(16, dtype=torch.int64))
    z = torch.zeros(16, 2)
    rest = codes[1:].clone()
    for _ in range(60):
        ema.update(z, torch.zeros(16, dtype=torch.int64))
    assert torch.isfinite(codes).all()
    assert torch.allclose(codes[1:], rest, atol=1e-5)
    assert codes[0].abs().max() < 1e-3
