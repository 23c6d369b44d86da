"""Checkpoints in parts: what was saved is read, and what is not ours is refused."""

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
from delvm.interop.load import describe, load_student, peek
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.training.strategies import AtomicCheckpointIO


@pytest.fixture
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(20, 32, 2, 2, context=16, codebook_dim=8, init=Init.ordinary)
    model = Transformer(config, torch.randn(20, 8)).eval()
    model.tokenizer_fingerprint = "0123456789abcdef"
    return model


def write(folder: Path, student: Transformer, **more: Any) -> dict[str, Any]:
    """A checkpoint of one part, as a training run leaves it."""
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
    sharded.write_rest(folder, {"delvm": describe(student), "global_step": 7})
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_was_saved_is_read(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    state = write(folder, student)
    assert sharded.recognises(folder) and not sharded.recognises(tmp_path)
    assert same(sharded.read(folder), state)
    assert sharded.read(folder, "optimizer_0.").keys() == {"optimizer_0"}
    assert sharded.read_rest(folder)["global_step"] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "whole")
    assert same(torch.load(tmp_path / "whole", weights_only=True), state)  # as torch reads it


def test_a_student_is_loaded_and_exported(student, tmp_path, capsys):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    again = load_student(folder)
    ids = torch.randint(0, 20, (2, 16))
    assert torch.equal(again(ids), student(ids))
    assert again.tokenizer_fingerprint == "0123456789abcdef"
    found = peek(folder)
    assert found["global_step"] == 7
    assert found["state_dict"].keys() == {f"model.{key}" for key in student.state_dict()}
    words = [f"checkpoint={folder}", "format=llama", f"output={tmp_path / 'llama'}"]
    assert (
        cli.main(["export", *words]) == 0
        and "student of 0.1M parameters" in capsys.readouterr().out
    )
    torch.testing.assert_close(load_student(tmp_path / "llama")(ids), student(ids))


def test_lightning_gets_it_whole(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    state = write(folder, student)
    found = AtomicCheckpointIO().load_checkpoint(folder, weights_only=True)
    assert same(found["state_dict"], state["state_dict"]) and found["global_step"] == 7
    (optimizer,) = found["optimizer_states"]
    assert same(optimizer["state"], {0: state["optimizer_0"]["state"]["model.b"]})
    assert [group["params"] for group in optimizer["param_groups"]] == [[0], []]
    AtomicCheckpointIO().save_checkpoint({"global_step": 8}, folder)  # a file takes its place
    assert AtomicCheckpointIO().load_checkpoint(folder, weights_only=True) == {"global_step": 8}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Trap:
    """Leaves a mark where it is unpickled with too much trust."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_code_in_the_index_is_refused(student, tmp_path):
    folder, mark = tmp_path / "last.ckpt", tmp_path / "sprung"
    write(folder, student)
    (folder / ".metadata").write_bytes(pickle.dumps(Trap(mark)))
    for read in (load_student, peek, sharded.read):
        with pytest.raises(UserError, match=r"/\.metadata asks for \S+, which no index of"):
            read(folder)
    assert not mark.exists()


def test_code_in_a_value_is_refused(student, tmp_path):
    folder, mark = tmp_path / "last.ckpt", tmp_path / "sprung"
    write(folder, student, optimizer_1=Trap(mark))
    with pytest.raises(UserError, match="plain values: it asks for getattr, which is neither"):
        sharded.read(folder)
    assert not mark.exists()
    load_student(folder)  # which has no use for it


def test_an_index_reaches_no_file_outside(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    index = folder / ".metadata"
    index.write_bytes(index.read_bytes().replace(b"__0_0.distcp", b"../0_.distcp"))
    with pytest.raises(UserError, match="names '../0_.distcp', which is not a file beside it"):
        load_student(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
def test_a_torn_or_missing_part_is_told(student, tmp_path, name):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    part = folder / name
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(UserError, match=r"last\.ckpt.*cannot be read"):
        load_student(folder)
    part.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt"):
        load_student(folder)


def test_what_is_no_index_is_told(student, tmp_path):
    folder = tmp_path / "last.ckpt"
    write(folder, student)
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="is no index of a checkpoint"):
        load_student(folder)
