"""The tokenizer: parity with open-muse's code, quantization, options and errors."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.models import quantizer
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig
from tests.models.naive_vqgan import contiguous_copy, naive_encode

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "muse_vqgan"
TINY = {"resolution": 16, "hidden_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
TINY |= {"attn_resolutions": [], "z_channels": 32, "num_embeddings": 24}
TINY |= {"quantized_embed_dim": 8}


def tiny(**changes: object) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(**(TINY | changes))).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def golden() -> tuple[VQGAN, dict[str, np.ndarray]]:
    """The open-muse model and what it computed."""
    config = json.loads((GOLDEN / "config.json").read_text())
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    model = VQGAN(VQGANConfig(**config)).eval()
    model.load_state_dict(torch.load(GOLDEN / "pytorch_model.bin", weights_only=True))
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as file:
        return model, dict(file)


def test_ids_equal_open_muse(golden):
    model, expected = golden
    ids = model.encode(torch.from_numpy(expected["pixels"]))
    np.testing.assert_array_equal(ids.numpy(), expected["ids"])


def test_reconstruction_equals_open_muse(golden):
    model, expected = golden
    ids = torch.from_numpy(expected["ids"])
    # In float64 only the rounding of the golden values remains, below 1e-5 on any machine.
    exact = copy.deepcopy(model).double().decode(ids, clamp=False)
    assert np.abs(exact.numpy() - expected["reconstruction"]).max() < 1e-5
    # In float32 CPUs round differently; unclamped values exceed 2 here.
    pixels = model.decode(ids, clamp=False)
    scale = np.abs(expected["reconstruction"]).max()
    assert pixels.dtype == torch.float32
    assert np.abs(pixels.numpy() - expected["reconstruction"]).max() < 1e-5 * max(1.0, scale)


def test_nearest_code_equals_full_distance_matrix():
    model = tiny()
    z = torch.randn(50, 8)
    # initial codes are close to 0: spread them, so that distances differ
    model.quantize.embedding.weight.data.normal_()
    expected = ((z[:, None] - model.codebook[None]) ** 2).sum(-1).argmin(1)
    assert torch.equal(model.quantize.nearest_code_indices(z), expected)


def test_chunked_search_equals_unchunked_search(monkeypatch):
    model = tiny()
    model.quantize.embedding.weight.data.normal_()
    z = torch.randn(50, 8)
    unchunked = model.quantize.nearest_code_indices(z)
    monkeypatch.setattr(quantizer, "_MAX_DISTANCE_ELEMENTS", 24 * 7)  # seven vectors at a time
    assert torch.equal(model.quantize.nearest_code_indices(z), unchunked)


@pytest.mark.parametrize(
    "changes", [{}, {"patch_size": 2}, {"pixel_range": PixelRange.signed}, {"use_l2_norm": True}]
)
def test_encode_equals_naive_encode(changes):
    model = tiny(**changes)
    model.quantize.embedding.weight.data.normal_()
    pixels = torch.rand(4, 3, 16, 16)
    expected, codes = naive_encode(contiguous_copy(model), pixels)
    ids = model.encode(pixels)
    assert torch.equal(ids, expected)
    assert torch.equal(model.codebook[ids], codes)


def test_bf16_is_close_to_float32(golden):
    model, expected = golden
    pixels, ids = (torch.from_numpy(expected[name]) for name in ("pixels", "ids"))
    float32_pixels = model.decode(ids)
    model.bf16 = True
    try:
        bf16_ids, bf16_pixels = model.encode(pixels), model.decode(ids)
    finally:
        model.bf16 = False
    assert bf16_ids.shape == ids.shape and (bf16_ids == ids).float().mean() > 0.8
    assert bf16_pixels.dtype == torch.float32
    assert 0 < (bf16_pixels - float32_pixels).abs().max() < 0.1


@pytest.mark.parametrize(
    ("blocks", "option", "applied"), [(1, 0, 0), (1, 1, 1), (2, 0, 1), (2, 1, 1)]
)
def test_attn_in_single_block_levels(blocks, option, applied):
    model = tiny(
        attn_resolutions=[8], num_res_blocks=blocks, attn_in_single_block_levels=bool(option)
    )
    pixels = torch.rand(2, 3, 16, 16)
    before = model.encode_features(pixels)
    assert len(model.encoder.down[1].attn) == blocks
    torch.nn.init.zeros_(model.encoder.down[1].attn[0].proj_out.weight)
    assert torch.equal(model.encode_features(pixels), before) is not bool(applied)


def test_search_is_float32_under_autocast():
    model = tiny()
    model.quantize.embedding.weight.data.normal_()
    z = torch.randn(500, 8)
    expected = model.quantize.nearest_code_indices(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantize.nearest_code_indices(z), expected)
    half = model.bfloat16().quantize  # bf16-true: codes are rounded, the search is in float32
    rounded = ((z.bfloat16().float()[:, None] - half.codebook.float()[None]) ** 2).sum(-1).argmin(1)
    assert torch.equal(half.nearest_code_indices(z.bfloat16()), rounded)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_shapes_and_ranges(patch):
    model = tiny(patch_size=patch)
    latent_size = 16 // (2 * patch)
    assert model.config.downsample_factor == 2 * patch
    assert model.tokens_per_image == latent_size**2
    ids = model.encode(torch.rand(3, 3, 16, 16))
    assert ids.shape == (3, latent_size**2) and ids.dtype == torch.int64
    pixels = model.decode(ids)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_default_architecture_is_delvms():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert model.tokens_per_image == 256
    assert model.encoder.down[4].attn[1].q.weight.shape == (512, 512, 1, 1)
    assert model.decoder.up[4].attn[2].q.weight.shape == (512, 512, 1, 1)
    assert not hasattr(model.encoder.down[4], "downsample")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: m.encode(torch.rand(1, 3, 8, 8)),
            ["8, 8", "16, 16", "resize_center_crop(image, 16)"],
        ),
        (lambda m: m.encode(torch.rand(1, 3, 17, 16)), ["17, 16", "16, 16"]),
        (lambda m: m.encode(torch.full((1, 3, 16, 16), torch.nan)), ["768 of 768", "NaN"]),
        (lambda m: m.encode(torch.full((1, 3, 16, 16), 255.0)), ["255", "[0, 1]"]),
        (lambda m: m.encode(torch.full((1, 3, 16, 16), -0.5)), ["-0.5", "[0, 1]"]),
        (lambda m: m.decode(torch.zeros(1, 5, dtype=torch.int64)), ["5", "64"]),
        (lambda m: m.decode(torch.full((1, 64), 24)), ["24"]),
        (lambda m: tiny(resolution=15), ["15", "2"]),
        (lambda m: tiny(hidden_channels=20), ["20", "32"]),
    ],
)
def test_errors_name_the_values(call, words):
    with pytest.raises(ValueError) as error:
        call(tiny())
    assert all(word in str(error.value) for word in words)
