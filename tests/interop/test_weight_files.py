"""Weight files: shards and their index, and files that are not weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.interop.fingerprint import fingerprint
from delvm.interop.formats import llama
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import config_dict, save_model
from delvm.interop.token_files import read_internlm
from delvm.models.token_space import TokenSpace

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "muse_vqgan"


def golden_state() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)


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


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointers_of_git_lfs_are_named(name, tmp_path):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{name} is only a pointer of Git LFS: run `git lfs pull`"):
        weights.read_weights(tmp_path)
    (tmp_path / "x.bin").write_text(pointer)
    with pytest.raises(UserError, match=r"x\.bin is only a pointer of Git LFS"):
        list(read_internlm(tmp_path / "x.bin", TokenSpace()))


def test_why_a_checkpoint_cannot_be_read(tmp_path, monkeypatch):
    torch.save({"weights": torch.zeros(1), "path": tmp_path}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"it asks for pathlib\S*Path, .*save its state dict alone"):
        weights.read_pickle(tmp_path / "last.ckpt")

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may read all files

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(UserError, match="plain values: Permission denied"):
        weights.read_pickle(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "../secret.safetensors"}, "not a file next to it"),
        ({"a": "/etc/passwd"}, "not a file next to it"),
        ({"a": 3}, "no weight_map"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, r"do not match .*index\.json: b"),
    ],
)
def test_shard_index_is_untrusted(tmp_path, files, message):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(UserError, match=message):
        weights.read_weights(tmp_path)


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


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_names_of_wrappers_are_left_out(tmp_path, prefix, file):
    """Weights saved out of DataParallel, DDP or torch.compile."""
    student = load_student("shapes")
    llama.write(student, tmp_path)
    plain = weights.read_tensors(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    wrapped = {prefix + name: tensor for name, tensor in plain.items()}
    if file.endswith("bin"):
        torch.save(wrapped, tmp_path / file)
    else:
        weights.write_tensors(tmp_path / file, wrapped)
    ids = torch.randint(0, 1024, (1, 8))
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path)(ids), student(ids))


def test_names_of_wrappers_within_a_model_are_left_out():
    """`torch.compile` of each block, FSDP and checkpointing name them in the middle."""
    state = {"blocks.0._orig_mod.a": 1, "blocks.1._fsdp_wrapped_module.module.b": 2, "module.c": 3}
    assert weights.strip_wrappers(state) == {"blocks.0.a": 1, "blocks.1.module.b": 2, "module.c": 3}
    clash = {"a._orig_mod.b": 1, "a.b": 2}  # two weights stay two
    assert weights.strip_wrappers(clash) == clash


def test_delvm_folder_and_checkpoint_with_wrapped_names_load(tmp_path):
    student = load_student("shapes")
    state = {f"_orig_mod.{k}": v for k, v in student.state_dict().items()}
    save_model(student, tmp_path / "own")
    weights.write_tensors(tmp_path / "own" / "model.safetensors", state)
    compiled = {f"model._orig_mod.{k}": v for k, v in student.state_dict().items()}
    torch.save({"delvm": config_dict(student), "state_dict": compiled}, tmp_path / "a.ckpt")
    for path in (tmp_path / "own", tmp_path / "a.ckpt"):
        found = load_student(path).state_dict()
        assert all(torch.equal(found[k], v) for k, v in student.state_dict().items())
