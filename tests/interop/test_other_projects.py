"""Tokenizers of other projects: open-muse and taming-transformers."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.interop.fingerprint import fingerprint
from delvm.interop.formats import open_muse
from delvm.interop.load import load_tokenizer
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "muse_vqgan"
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


def golden_state() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)


def test_open_muse_folder_matches_golden_ids():
    tokenizer = load_tokenizer(GOLDEN)
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as known:
        assert np.array_equal(tokenizer.encode(torch.from_numpy(known["pixels"])), known["ids"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_sharded_weights(tmp_path, name):
    state = golden_state()
    stem, suffix = name.split(".")
    write: Callable[..., None] = save_file if suffix == "safetensors" else torch.save
    files = {}
    for number in range(3):
        part = {k: v.clone() for i, (k, v) in enumerate(state.items()) if i % 3 == number}
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        write(part, tmp_path / file)
        files |= dict.fromkeys(part, file)
    (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(load_tokenizer(GOLDEN))
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=f"shard {file} is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "../secret.safetensors"}, "not a file next to it"),
        ({"a": "/etc/passwd"}, "not a file next to it"),
        ({"a": 3}, "no weight_map"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "do not match .*index\.json: b"),
    ],
)
def test_shard_index_is_untrusted(tmp_path, files, message):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(UserError, match=message):
        weights.read_weights(tmp_path)


def test_open_muse_export(tmp_path):
    tokenizer = load_tokenizer(GOLDEN)
    open_muse.write(tokenizer, tmp_path / "muse")
    assert fingerprint(load_tokenizer(tmp_path / "muse")) == fingerprint(tokenizer)
    expected = json.loads((GOLDEN / "config.json").read_text())
    assert json.loads((tmp_path / "muse" / "config.json").read_text()) == expected
    written = weights.read_weights(tmp_path / "muse")
    assert {k: v.shape for k, v in written.items()} == {
        k: v.shape for k, v in golden_state().items()
    }


def test_open_muse_refuses_unsupported_architecture(tmp_path):
    with pytest.raises(UserError, match="patch_size: 4"):
        open_muse.write(load_tokenizer("shapes"), tmp_path / "muse")
    assert not (tmp_path / "muse").exists()


def test_invalid_open_muse_folder_is_refused(tmp_path):
    config = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no weights in .*: expected one of model\.safetensors"):
        load_tokenizer(tmp_path)
    torch.save(golden_state() | {"bonus": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="unexpected: bonus"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"rank": 4}))
    with pytest.raises(UserError, match="unknown keys: rank"):
        load_tokenizer(tmp_path)


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


def test_unknown_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(
        UserError,
        match="is not in a known format: delvm-1 .*, a VQGAN checkpoint of taming-transformers",
    ):
        load_tokenizer(tmp_path / "x.ckpt")
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a state dict"):
        weights.read_weights(tmp_path)
