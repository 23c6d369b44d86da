"""Tokenizers in the format of open-muse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.interop.fingerprint import fingerprint
from delvm.interop.formats import open_muse
from delvm.interop.load import load_tokenizer

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "muse_vqgan"


def golden_state() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)


def test_open_muse_folder_matches_golden_ids():
    tokenizer = load_tokenizer(GOLDEN)
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as known:
        assert np.array_equal(tokenizer.encode(torch.from_numpy(known["pixels"])), known["ids"])


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


def test_open_muse_export_has_the_file_that_its_own_loader_reads(tmp_path):
    """``ModelMixin.from_pretrained`` of open-muse reads pytorch_model.bin and no other file."""
    tokenizer = load_tokenizer(GOLDEN)
    open_muse.write(tokenizer, tmp_path / "muse", torch.float16)
    pickled = torch.load(tmp_path / "muse" / "pytorch_model.bin", weights_only=True)
    written = weights.read_tensors(tmp_path / "muse" / "model.safetensors")
    assert pickled.keys() == golden_state().keys() == written.keys()
    assert all(torch.equal(pickled[name], written[name]) for name in written)


@pytest.mark.parametrize("name", ["MaskGitVQGAN", "MOVQ", None])
def test_other_tokenizers_of_open_muse_are_named(tmp_path, name):
    """Their configs have the same keys, but their networks are others."""
    config = json.loads((GOLDEN / "config.json").read_text()) | {"_class_name": name}
    state = golden_state()
    if name is None:  # only the weights show it
        del config["_class_name"], state["quant_conv.weight"]
        state["encoder.mid.0.conv1.weight"] = torch.zeros(1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"holds a {name or 'MaskGitVQGAN'} of open-muse"):
        load_tokenizer(tmp_path)


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
