"""Small roots and weights that the verbs can run on in no time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from delvm import cli
from delvm.interop.fingerprint import fingerprint
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig

# 16 px, 4 tokens a picture, 32 codes.
TINY_TOKENIZER = VQGANConfig(
    resolution=16,
    hidden_channels=32,
    channel_mult=[1, 1],
    num_res_blocks=1,
    attn_resolutions=[],
    no_attn_mid_block=True,
    z_channels=8,
    num_embeddings=32,
    quantized_embed_dim=4,
    patch_size=4,
)
TINY_STUDENT = TransformerConfig(
    vocab_size=32, dim=16, n_layers=1, n_heads=2, max_seq_len=24, codebook_dim=4
)

Delvm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def delvm(capsys: pytest.CaptureFixture[str]) -> Delvm:
    """``delvm("train", "seed=1")`` in this process -> (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained ``tokenizer`` and ``student`` that belong together."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tokenizer = VQGAN(TINY_TOKENIZER)
    student = Transformer(TINY_STUDENT, tokenizer.codebook.detach())
    student.tokenizer_fingerprint = fingerprint(tokenizer)
    save_model(tokenizer, folder / "tokenizer")
    save_model(student, folder / "student")
    return folder


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A prompt folder of two pairs, of different sizes and formats."""
    folder = tmp_path / "prompt"
    folder.mkdir()
    for number, suffix in enumerate((".png", ".jpg")):
        for name in ("img", "label"):
            picture = Image.new("RGB", (20 + number, 30), (40 * number, 90, 120))
            picture.save(folder / f"{number:06d}_{name}{suffix}")
    return folder
