"""Folders and checkpoints: what was written is read back, anything else is refused."""

import json
from pathlib import Path

import pytest
import torch

from delvm.errors import UserError
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import config_dict, save_model
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig


@pytest.fixture
def tokenizer() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, num_embeddings=20)
    config.quantized_embed_dim = 8
    return VQGAN(config).eval()


@pytest.fixture
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(20, 32, 2, 2, max_seq_len=16, codebook_dim=8, init=Init.gpt2)
    model = Transformer(config, torch.randn(20, 8)).eval()
    model.tokenizer_fingerprint = "0123456789abcdef"
    return model


def test_tokenizer_folder_round_trip(tokenizer, tmp_path):
    save_model(tokenizer, tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels))
    assert fingerprint(again) == fingerprint(tokenizer)
    assert not again.training
    assert (tmp_path / "t" / "model.safetensors").stat().st_mode & 0o044 == 0o044  # for all to read


def test_student_folder_round_trip(student, tmp_path):
    save_model(student, tmp_path / "s")
    again = load_student(tmp_path / "s")
    ids = torch.randint(0, 20, (2, 16))
    assert torch.equal(again(ids), student(ids))
    assert again.tokenizer_fingerprint == "0123456789abcdef"
    assert again.config == student.config


def test_half_precision_keeps_its_fingerprint(tokenizer, tmp_path):
    """Shipped float16 weights match the tokens that were made with them."""
    save_model(tokenizer, tmp_path / "a", torch.float16)
    first = load_tokenizer(tmp_path / "a")
    save_model(first, tmp_path / "b", torch.float16)
    assert fingerprint(load_tokenizer(tmp_path / "b")) == fingerprint(first)
    assert fingerprint(first) != fingerprint(tokenizer)
    half, full = (tmp_path / "a" / "model.safetensors"), tmp_path / "full"
    save_model(tokenizer, full)
    assert half.stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size


def test_lightning_checkpoint_loads(student, tmp_path):
    weights = {f"model.{k}": v for k, v in student.state_dict().items()}
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": weights, "delvm": config_dict(student)}, file)
    ids = torch.randint(0, 20, (1, 8))
    assert torch.equal(load_student(file)(ids), student(ids))


def test_run_folder_loads(student, tmp_path):
    save_model(student, tmp_path / "run" / "student")
    assert load_student(tmp_path / "run").config == student.config


def test_fingerprint_sees_weights_and_architecture(tokenizer):
    before = fingerprint(tokenizer)
    tokenizer.post_quant_conv.bias.data[0] += 1e-3
    assert fingerprint(tokenizer) != before


def edit(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_wrong_kind_is_refused(student, tmp_path):
    save_model(student, tmp_path / "s")
    with pytest.raises(UserError, match="holds a student, not a tokenizer: set tokenizer=PATH"):
        load_tokenizer(tmp_path / "s")


def test_missing_path_error_names_shipped_weights():
    with pytest.raises(UserError, match="student not found: nowhere.*set draft=PATH"):
        load_student("nowhere", key="draft")
    with pytest.raises(UserError, match="student not found: nowhere.*set student=PATH"):
        load_student("nowhere")


def test_mismatched_shapes_are_listed(student, tmp_path):
    save_model(student, tmp_path / "s")
    edit(tmp_path / "s", config=config_dict(student)["config"] | {"vocab_size": 21, "n_layers": 1})
    with pytest.raises(UserError) as error:
        load_student(tmp_path / "s")
    assert "head.weight (20, 32) != (21, 32)" in str(error.value)
    assert "unexpected: blocks.1." in str(error.value)


def test_quantized_weights_are_refused(student, tmp_path):
    state = student.state_dict()
    state["head.weight"] = (100 * state["head.weight"]).to(torch.int8)
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in state.items()}}
        | {"delvm": config_dict(student)},
        tmp_path / "last.ckpt",
    )
    with pytest.raises(UserError, match=r"not in floating point: head\.weight int8"):
        load_student(tmp_path / "last.ckpt")


def test_unknown_config_keys_are_listed(student, tmp_path):
    save_model(student, tmp_path / "s")
    edit(tmp_path / "s", config=config_dict(student)["config"] | {"experts": 8})
    with pytest.raises(UserError, match="experts"):
        load_student(tmp_path / "s")


def test_pickle_with_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    file = tmp_path / "trap.ckpt"
    torch.save({"state_dict": {}, "delvm": Trap()}, file)
    with pytest.raises(UserError, match="plain values: it asks for getattr, which is"):
        load_student(file)
    assert not (tmp_path / "sprung").exists()


def test_truncated_weights_are_refused(student, tmp_path):
    save_model(student, tmp_path / "s")
    file = tmp_path / "s" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        load_student(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "the student config is missing or not an object"),
        ({"config": [1]}, "the student config is missing or not an object"),
        ({"config": {"embedding": "own words"}}, "invalid student config: 'own words' is not"),
        ({"config": {"embedding": [1]}}, "invalid student config"),
        ({"config": {"width": 8, "dim": 8}}, "unknown keys in the student config: width"),
        ({"space": [1]}, "expected the keys bos, codebook_size, eos"),
        ({"kind": None}, "holds a None, not a student"),
    ],
)
def test_invalid_metadata_is_refused(student, tmp_path, change, message):
    save_model(student, tmp_path / "s")
    edit(tmp_path / "s", **change)
    with pytest.raises(UserError, match=message):
        load_student(tmp_path / "s")


@pytest.mark.parametrize("delvm", [None, [1], "student"])
def test_checkpoint_without_metadata_is_refused(tmp_path, delvm):
    torch.save({"state_dict": {}, "delvm": delvm}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="was not written by `delvm train`"):
        load_student(tmp_path / "x.ckpt")
