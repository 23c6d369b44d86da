"""The scripts with which the shipped weights were made."""

from typing import Any

import pytest
import torch

from delvm.interop.load import SHIPPED_DIR, load_student
from delvm.interop.save import save_model
from delvm.models.mlp import MLPKind
from delvm.models.transformer import Transformer, TransformerConfig
from experiments.shapes.compare_twins import TWINS, table
from experiments.shapes.deepen import deepen, main
from experiments.shapes.write_cards import CARDS, card

SMALL: Any = {"vocab_size": 32, "dim": 16, "n_layers": 3, "n_heads": 2, "max_seq_len": 24}


def student(**options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SMALL, codebook_dim=4, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.load_codebook(torch.randn(32, 4), "0123456789abcdef")
    return model


@pytest.mark.parametrize(
    "options", [{}, {"mlp": MLPKind.gelu_tanh, "mlp_bias": True}], ids=["swiglu", "gelu"]
)
def test_deeper_student_has_the_same_logits(options, tmp_path):
    model = student(**options)
    save_model(model, tmp_path / "student")
    main(str(tmp_path / "student"), str(tmp_path / "deeper"))
    deeper = load_student(tmp_path / "deeper")
    ids = torch.randint(32, (2, 24))
    assert deeper.config.n_layers == 6
    assert deeper.tokenizer_fingerprint == model.tokenizer_fingerprint
    assert deeper.token_space == model.token_space
    torch.testing.assert_close(deeper(ids), model(ids), rtol=0, atol=0)


def test_added_blocks_learn():
    deeper = deepen(student())
    deeper(torch.randint(32, (2, 24))).square().mean().backward()
    for number in (1, 3, 5):
        assert deeper.blocks[number].attention.out.weight.grad.abs().max() > 0
        assert deeper.blocks[number].mlp.down.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name, purpose, student", CARDS, ids=[each[0] for each in CARDS])
def test_shipped_card_is_the_one_that_its_report_gives(name, purpose, student):
    written = (SHIPPED_DIR / name / "README.md").read_text(encoding="utf-8")
    assert card(name, purpose, student) == written


def test_readme_shows_the_compared_twins():
    assert table() in TWINS.with_name("README.md").read_text(encoding="utf-8")
