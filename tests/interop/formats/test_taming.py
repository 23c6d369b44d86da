"""Checkpoints of taming-transformers."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from delvm.errors import UserError
from delvm.interop.load import load_tokenizer
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig

DDCONFIG = {
    "double_z": False,
    "z_channels": 32,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


def taming(folder: Path, **changes: object) -> tuple[VQGAN, Path]:
    """A first stage as taming-transformers saves it, and the same network on [0, 1]."""
    torch.manual_seed(0)
    config = VQGANConfig(16, 3, 32, [1, 1], 1, [8], z_channels=32, num_embeddings=24)
    config.quantized_embed_dim, config.attn_in_single_block_levels = 8, True
    plain = VQGAN(config).eval()
    plain.codebook.data.normal_()
    state = plain.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(4)}
    params = {"embed_dim": 8, "n_embed": 24, "ddconfig": DDCONFIG | changes}
    (folder / "last.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    return plain, folder / "last.ckpt"


def test_taming_checkpoint_takes_pixels_in_0_1(tmp_path):
    plain, file = taming(tmp_path)
    tokenizer = load_tokenizer(file)
    pixels = torch.rand(2, 3, 16, 16)
    ids = tokenizer.encode(pixels)
    signed = plain.encode_features(2 * pixels - 1).flatten(0, 1)
    assert torch.equal(ids, plain.quantize.nearest_code_indices(signed).view(ids.shape))
    expected = (plain.decode(ids, clamp=False) + 1) / 2
    torch.testing.assert_close(tokenizer.decode(ids, clamp=False), expected)
    assert tokenizer.config == replace(plain.config, pixel_range=PixelRange.signed)


def test_taming_yaml_locations(tmp_path):
    logs = tmp_path / "logs"
    (logs / "checkpoints").mkdir(parents=True)
    (logs / "configs").mkdir()
    _, file = taming(logs / "checkpoints")
    found = file.with_suffix(".yaml")
    found.rename(logs / "configs" / "2021-04-03T19-39-50-project.yaml")
    load_tokenizer(file)
    (logs / "configs" / "2021-04-03T19-39-50-project.yaml").rename(found.with_name("other.yaml"))
    with pytest.raises(
        UserError, match=r"the YAML of .*last\.ckpt is missing: expected NAME\.yaml"
    ):
        load_tokenizer(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"double_z": True}, "double_z True is not supported"),
        ({"out_ch": 1}, "out_ch 1 != in_channels 3"),
        ({"experts": 2}, "unknown keys in ddconfig: experts"),
        ({"ch": 64}, "do not fit"),
        ({"ch": "many"}, "invalid tokenizer config"),
    ],
)
def test_unsupported_taming_yaml_is_refused(tmp_path, changes, message):
    _, file = taming(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_tokenizer(file)


@pytest.mark.parametrize("text", ["model: [", "model: {params: {}}", "[]"])
def test_broken_taming_yaml_is_named(tmp_path, text):
    _, file = taming(tmp_path)
    file.with_suffix(".yaml").write_text(text)
    with pytest.raises(UserError, match=r"last\.yaml"):
        load_tokenizer(file)


def test_callbacks_of_old_lightning_are_not_imported(tmp_path, monkeypatch):
    """Released checkpoints name a class that is not installed; it is never imported."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    cls = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = cls
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    for name in names:
        monkeypatch.setitem(sys.modules, name, module)
    _, file = taming(tmp_path)
    state = torch.load(file, weights_only=True)
    torch.save(state | {"callbacks": {cls: {"best": 1.0}}}, file)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    load_tokenizer(file)
