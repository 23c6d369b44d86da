"""Teacher-forced losses against a plain loop."""

import pytest
import torch

from delvm.models import teacher_forcing as prediction
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


@pytest.mark.parametrize("held", [1 << 24, 11 * 7])
def test_against_a_plain_loop(
    student: Transformer, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "MAX_LOGITS", held)
    ids = torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(1))
    found, hits = prediction.next_token_nll(student, ids)
    assert found.shape == hits.shape == (3, 19)
    for row in range(3):
        for at in range(19):
            with torch.no_grad():
                logits = student(ids[row : row + 1, : at + 1])[0, -1]
            truth = ids[row, at + 1]
            wanted = logits.logsumexp(-1) - logits[truth]
            assert found[row, at].item() == pytest.approx(wanted.item(), abs=1e-4)
            assert hits[row, at].item() == (logits.argmax() == truth).item()
