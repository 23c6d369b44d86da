"""Networks built from keyword arguments, and errors of their configs."""

import pytest
import torch

from delvm.models import VQGAN, PixelRange, Transformer, TransformerConfig, VQGANConfig
from delvm.models.attention import AttentionBackend
from delvm.models.transformer import Init, InputEmbedding

STUDENT = {"vocab_size": 12, "dim": 8, "n_layers": 1, "n_heads": 2, "max_seq_len": 5}
TOKENIZER = {"resolution": 16, "hidden_channels": 32, "num_res_blocks": 1, "z_channels": 32}


def test_transformer_from_settings():
    model = Transformer.from_settings(
        **STUDENT, embedding="learned", init=Init.gpt2, attention="sdpa"
    )
    expected = TransformerConfig(**STUDENT, embedding=InputEmbedding.learned, init=Init.gpt2)
    expected.attention = AttentionBackend.sdpa
    assert model.config == expected
    assert (model.vocab_size, model.max_seq_len) == (12, 5)


def test_transformer_from_settings_deferred():
    model = Transformer.from_settings(defer_init=True, **STUDENT)
    assert all(p.is_meta for p in model.blocks.parameters())
    for _ in model.init_weights():
        pass
    assert not any(p.is_meta for p in model.parameters())


def test_vqgan_from_settings():
    model = VQGAN.from_settings(
        **TOKENIZER, channel_mult=(1, 1), attn_resolutions=(), pixel_range="signed"
    )
    assert model.config.channel_mult == [1, 1] and model.config.attn_resolutions == []
    assert model.config.pixel_range is PixelRange.signed
    assert (model.resolution, model.tokens_per_image, model.codebook_size) == (16, 64, 8192)
    ids = model.encode(torch.rand(1, 3, 16, 16))
    assert ids.shape == (1, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_layer": 2}, r"unknown key 'n_layer': did you mean 'n_layers'\?"),
        (
            {"init": "gpt3"},
            r"init=gpt3 is not one of reference, gpt2, normal: did you mean 'gpt2'\?",
        ),
        ({"n_layer": 2, "init": "x"}, "n_layer.*; init=x"),
        ({"n_heads": 3}, "dim 8 is not divisible by n_heads 3"),
    ],
)
def test_errors_of_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Transformer.from_settings(**(STUDENT | settings))


@pytest.mark.parametrize(
    ("config", "errors"),
    [
        (TransformerConfig(), []),
        (
            TransformerConfig(dim=6, n_heads=2),
            ["head_dim 3 (dim / n_heads) is odd, rotary embeddings need an even one"],
        ),
        (
            TransformerConfig(n_heads=0, n_layers=-1, activation_checkpointing=-1),
            [
                "n_layers -1 is less than 1",
                "n_heads 0 is less than 1",
                "activation_checkpointing -1 is less than 0",
            ],
        ),
        (
            TransformerConfig(dropout=1.0, drop_path=-0.5),
            ["dropout 1.0 is not in [0, 1)", "drop_path -0.5 is not in [0, 1)"],
        ),
        (VQGANConfig(), []),
        (
            VQGANConfig(resolution=60),
            ["resolution 60 is not a multiple of the downsample factor 16"],
        ),
        (VQGANConfig(channel_mult=[]), ["channel_mult is empty, at least one level is needed"]),
        (VQGANConfig(patch_size=0), ["patch_size 0 is less than 1"]),
        (
            VQGANConfig(hidden_channels=48, channel_mult=[1, 2]),
            ["hidden_channels 48 x channel_mult 1 is not a multiple of 32"],
        ),
    ],
)
def test_validate_lists_all_errors(config, errors):
    assert config.validate() == errors
    build = Transformer if isinstance(config, TransformerConfig) else VQGAN
    if errors:
        with torch.device("meta"), pytest.raises(ValueError) as error:
            build(config)
        assert str(error.value) == "; ".join(errors)
