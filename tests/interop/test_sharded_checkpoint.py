"""Sharded checkpoints: what was saved is read, anything else is refused."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from delvm import cli
from delvm.errors import UserError
from delvm.interop import sharded_checkpoint as sharded
from delvm.interop.load import load_student, read_metadata
from delvm.interop.save import config_dict
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.training.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(20, 32, 2, 2, max_seq_len=16, codebook_dim=8, init=Init.gpt2)
    model = Transformer(config, torch.randn(20, 8)).eval()
    model.tokenizer_fingerprint = "0123456789abcdef"
    return model


def write(folder: Path, student: Transformer, **more: Any) -> dict[str, Any]:
    """A checkpoint of one shard, as a training run writes it."""
    folder.mkdir()
    state = {
        "state_dict": {f"model.{k}": v for k, v in student.state_dict().items()},
        "optimizer_0": {
            "state": {"model.b": {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}},
            "param_groups": [
                {"lr": 0.1, "betas": (0.9, 0.95), "params": ["model.b"]},
                {"lr": 0.1, "fused": None, "params": []},
            ],
        },
        **more,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder))
    sharded.write_metadata(folder, {"delvm": config_dict(student), "global_step": 7})
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_read_returns_what_was_saved(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    state = write(folder, student)
    assert sharded.can_load(folder) and not sharded.can_load(tmp_path)
    assert same(sharded.read(folder), state)
    assert sharded.read(folder, "optimizer_0.").keys() == {"optimizer_0"}
    assert sharded.read_metadata(folder)["global_step"] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "merged")
    assert same(torch.load(tmp_path / "merged", weights_only=True), state)  # as torch reads it


def test_student_loads_and_exports(student, tmp_path, capsys):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    again = load_student(folder)
    ids = torch.randint(0, 20, (2, 16))
    assert torch.equal(again(ids), student(ids))
    assert again.tokenizer_fingerprint == "0123456789abcdef"
    found = read_metadata(folder)
    assert found["global_step"] == 7
    assert found["state_dict"].keys() == {f"model.{key}" for key in student.state_dict()}
    words = [f"checkpoint={folder}", "format=llama", f"output_dir={tmp_path / 'llama'}"]
    assert (
        cli.main(["export", *words]) == 0
        and "student of 0.1M parameters" in capsys.readouterr().out
    )
    torch.testing.assert_close(load_student(tmp_path / "llama")(ids), student(ids))


def test_lightning_gets_the_merged_checkpoint(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    state = write(folder, student)
    found = AtomicCheckpointIO().load_checkpoint(folder, weights_only=True)
    assert same(found["state_dict"], state["state_dict"]) and found["global_step"] == 7
    (optimizer,) = found["optimizer_states"]
    assert same(optimizer["state"], {0: state["optimizer_0"]["state"]["model.b"]})
    assert [group["params"] for group in optimizer["param_groups"]] == [[0], []]
    AtomicCheckpointIO().save_checkpoint({"global_step": 8}, folder)  # a file replaces it
    assert AtomicCheckpointIO().load_checkpoint(folder, weights_only=True) == {"global_step": 8}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Trap:
    """Creates a file when it is unpickled without restrictions."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sprung,))


def test_index_with_code_is_refused(student, tmp_path):
    folder, sprung = tmp_path / "last.ckpt", tmp_path / "sprung"
    write(folder, student)
    (folder / ".metadata").write_bytes(pickle.dumps(Trap(sprung)))
    for read in (load_student, read_metadata, sharded.read):
        with pytest.raises(
            UserError, match=r"/\.metadata asks for \S+, which an index of tensors does not need"
        ):
            read(folder)
    assert not sprung.exists()


def test_value_with_code_is_refused(student, tmp_path):
    folder, sprung = tmp_path / "last.ckpt", tmp_path / "sprung"
    write(folder, student, optimizer_1=Trap(sprung))
    with pytest.raises(UserError, match="plain values: it asks for getattr, which is neither"):
        sharded.read(folder)
    assert not sprung.exists()
    load_student(folder)  # which does not read it


def test_index_cannot_name_files_outside(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    index = folder / ".metadata"
    index.write_bytes(index.read_bytes().replace(b"__0_0.distcp", b"../0_.distcp"))
    with pytest.raises(UserError, match="names '../0_.distcp', which is not a file next to it"):
        load_student(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
def test_truncated_or_missing_file_is_refused(student, tmp_path, name):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    part = folder / name
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(UserError, match=r"last\.ckpt.*cannot be read"):
        load_student(folder)
    part.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt"):
        load_student(folder)


def test_invalid_index_is_refused(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="is not the index of a checkpoint"):
        load_student(folder)
