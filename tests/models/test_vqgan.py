"""The tokenizer equals the reference number for number, and refuses what it cannot hold."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.models import quantizer
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig
from tests.models.plain_vqgan import plain_copy, plain_encode

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


def test_ids_are_those_of_the_reference(golden):
    model, known = golden
    ids = model.encode(torch.from_numpy(known["pixels"]))
    np.testing.assert_array_equal(ids.numpy(), known["ids"])


def test_reconstruction_is_that_of_the_reference(golden):
    model, known = golden
    ids = torch.from_numpy(known["ids"])
    # Without rounding of our own, what is left is the reference's: on any machine below 1e-5.
    exact = copy.deepcopy(model).double().decode(ids, clamp=False)
    assert np.abs(exact.numpy() - known["reconstruction"]).max() < 1e-5
    # In float32 processors round differently; unclamped values here reach beyond 2.
    drawn = model.decode(ids, clamp=False)
    scale = np.abs(known["reconstruction"]).max()
    assert drawn.dtype == torch.float32
    assert np.abs(drawn.numpy() - known["reconstruction"]).max() < 1e-5 * max(1.0, scale)


def test_search_equals_the_plain_distance_matrix():
    model = tiny()
    z = torch.randn(50, 8)
    # initial codes are tiny: spread them so that distances differ
    model.quantize.embedding.weight.data.normal_()
    wanted = ((z[:, None] - model.codebook[None]) ** 2).sum(-1).argmin(1)
    assert torch.equal(model.quantize.nearest_code_indices(z), wanted)


def test_search_in_parts_is_the_search_of_the_whole(monkeypatch):
    model = tiny()
    model.quantize.embedding.weight.data.normal_()
    z = torch.randn(50, 8)
    whole = model.quantize.nearest_code_indices(z)
    monkeypatch.setattr(quantizer, "_MAX_DISTANCE_ELEMENTS", 24 * 7)  # seven vectors at a time
    assert torch.equal(model.quantize.nearest_code_indices(z), whole)


@pytest.mark.parametrize(
    "changes", [{}, {"patch_size": 2}, {"pixel_range": PixelRange.signed}, {"use_l2_norm": True}]
)
def test_encoding_is_the_plain_one(changes):
    model = tiny(**changes)
    model.quantize.embedding.weight.data.normal_()
    pixels = torch.rand(4, 3, 16, 16)
    wanted, codes = plain_encode(plain_copy(model), pixels)
    ids = model.encode(pixels)
    assert torch.equal(ids, wanted)
    assert torch.equal(model.codebook[ids], codes)


def test_the_fast_mode_is_nearly_the_exact_one(golden):
    model, known = golden
    pixels, ids = (torch.from_numpy(known[name]) for name in ("pixels", "ids"))
    exact = model.decode(ids)
    model.bf16 = True
    try:
        fast, drawn = model.encode(pixels), model.decode(ids)
    finally:
        model.bf16 = False
    assert fast.shape == ids.shape and (fast == ids).float().mean() > 0.8
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("blocks", "lone", "applied"), [(1, 0, 0), (1, 1, 1), (2, 0, 1), (2, 1, 1)]
)
def test_a_lone_attention_block_is_applied_where_it_is_asked_for(blocks, lone, applied):
    model = tiny(
        attn_resolutions=[8], num_res_blocks=blocks, attn_in_single_block_levels=bool(lone)
    )
    pixels = torch.rand(2, 3, 16, 16)
    before = model.encode_features(pixels)
    assert len(model.encoder.down[1].attn) == blocks
    torch.nn.init.zeros_(model.encoder.down[1].attn[0].proj_out.weight)
    assert torch.equal(model.encode_features(pixels), before) is not bool(applied)


def test_the_search_is_exact_under_an_outer_autocast():
    model = tiny()
    model.quantize.embedding.weight.data.normal_()
    z = torch.randn(500, 8)
    wanted = model.quantize.nearest_code_indices(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantize.nearest_code_indices(z), wanted)
    half = model.bfloat16().quantize  # bf16-true: the codes are rounded, the search is not
    rounded = ((z.bfloat16().float()[:, None] - half.codebook.float()[None]) ** 2).sum(-1).argmin(1)
    assert torch.equal(half.nearest_code_indices(z.bfloat16()), rounded)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_shapes(patch):
    model = tiny(patch_size=patch)
    grid = 16 // (2 * patch)
    assert model.config.downsample_factor == 2 * patch
    assert model.config.tokens_per_image == grid**2
    ids = model.encode(torch.rand(3, 3, 16, 16))
    assert ids.shape == (3, grid**2) and ids.dtype == torch.int64
    pixels = model.decode(ids)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_full_size_architecture_is_the_references():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert model.config.tokens_per_image == 256
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
def test_faults_name_the_values(call, words):
    with pytest.raises(ValueError) as error:
        call(tiny())
    assert all(word in str(error.value) for word in words)
