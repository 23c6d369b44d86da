"""The codebook follows its features, and dead codes come back."""

import torch

from delvm.training.codebook_ema import CodebookEMA, DeadCodeReset


def nearest(z, codes):
    return torch.cdist(z, codes).argmin(1)


def test_codes_converge_on_the_features_they_are_given():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    codes = torch.zeros(3, 2)
    book = CodebookEMA(codes, decay=0.9, dead_code_after=20)
    for _ in range(150):
        z = centres[torch.randint(3, (64,))] + 0.1 * torch.randn(64, 2)
        book.update(z, nearest(z, codes))
    assert torch.cdist(centres, codes).min(1).values.max() < 0.1


def test_dead_codes_are_moved_onto_features():
    torch.manual_seed(0)
    codes = torch.cat((torch.zeros(1, 2), torch.full((7, 2), 100.0)))
    book = CodebookEMA(codes, decay=None, dead_code_after=3)
    shares = []
    for _ in range(4):
        z = torch.randn(32, 2)
        shares.append(book.update(z, nearest(z, codes)).item())
    assert codes.abs().max() < 10
    assert book.num_reset == 7
    assert shares[-1] > shares[-2]


def test_revival_by_error_spares_what_is_matched_already():
    def near_far(dead_code_reset):
        torch.manual_seed(0)
        codes = torch.cat((torch.zeros(1, 2), torch.full((8, 2), 100.0)))
        book = CodebookEMA(codes, decay=None, dead_code_after=1, dead_code_reset=dead_code_reset)
        ground, rare = 0.01 * torch.randn(1000, 2), torch.tensor([[5.0, 0.0]]).repeat(20, 1)
        z = torch.cat((ground, rare))
        book.update(z, nearest(z, codes))
        assert book.num_reset == 8
        return int((codes[:, 0] > 4).sum())

    assert near_far(DeadCodeReset.random) <= 2  # 2% of the features
    assert near_far(DeadCodeReset.error) == 8


def test_revival_by_error_with_no_error_at_all():
    codes = torch.cat((torch.zeros(1, 2), torch.full((8, 2), 100.0)))
    book = CodebookEMA(codes, decay=None, dead_code_after=1, dead_code_reset=DeadCodeReset.error)
    z = torch.zeros(4, 2)  # fewer than there are dead codes
    book.update(z, nearest(z, codes))
    assert book.num_reset == 8 and codes.abs().max() < 1


def test_nothing_moves_when_nothing_is_asked():
    codes = torch.randn(8, 2)
    before = codes.clone()
    book = CodebookEMA(codes, decay=None, dead_code_after=None)
    for _ in range(200):
        book.update(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(codes, before)
    assert book.num_reset == 0


def test_idle_codes_keep_their_place_under_averages():
    torch.manual_seed(0)
    codes = torch.randn(4, 2)
    book = CodebookEMA(codes, decay=0.5, dead_code_after=None)
    book.update(torch.randn(16, 2), torch.zeros(16, dtype=torch.int64))
    z = torch.zeros(16, 2)
    rest = codes[1:].clone()
    for _ in range(60):
        book.update(z, torch.zeros(16, dtype=torch.int64))
    assert torch.isfinite(codes).all()
    assert torch.allclose(codes[1:], rest, atol=1e-5)
    assert codes[0].abs().max() < 1e-3
