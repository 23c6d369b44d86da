"""Teacher-forced losses against a simple loop."""

import pytest
import torch

from delvm.models import teacher_forcing
from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig


@pytest.fixture
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=11,
        dim=16,
        n_layers=2,
        n_heads=2,
        ffn_dim=24,
        max_seq_len=20,
        embedding=InputEmbedding.learned,
        init=Init.gpt2,
    )
    return Transformer(config).eval()


@pytest.mark.parametrize("max_logits", [1 << 24, 11 * 7])
def test_next_token_nll_equals_loop(
    student: Transformer, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_forcing, "MAX_LOGITS", max_logits)
    ids = torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(1))
    nll, correct = teacher_forcing.next_token_nll(student, ids)
    assert nll.shape == correct.shape == (3, 19)
    for row in range(3):
        for position in range(19):
            with torch.no_grad():
                logits = student(ids[row : row + 1, : position + 1])[0, -1]
            target = ids[row, position + 1]
            expected = logits.logsumexp(-1) - logits[target]
            assert nll[row, position].item() == pytest.approx(expected.item(), abs=1e-4)
            assert correct[row, position].item() == (logits.argmax() == target).item()
