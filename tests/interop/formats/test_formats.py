"""The table of formats lists every module, and `delvm export` offers those that can write."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from delvm.configs.verbs import ExportFormat
from delvm.errors import UserError
from delvm.interop import formats
from delvm.interop.formats import (
    FORMATS,
    OWN_FORMAT,
    find_format,
    import_format,
    import_writable_format,
)
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.model_source import ModelSource
from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig

NOT_FORMATS = {"__init__", "hf_decoder"}  # what two of them share


def test_every_module_is_listed():
    files = Path(formats.__file__).parent.glob("*.py")
    assert {file.stem for file in files} - NOT_FORMATS == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_module_has_the_functions_of_a_format(name):
    module = import_module(f"delvm.interop.formats.{name}")
    assert callable(module.matches) and callable(module.read)
    assert hasattr(module, "write") == (FORMATS[name].exports is not None)


def test_export_offers_every_writable_format():
    writable = {name for name, entry in FORMATS.items() if entry.exports}
    assert {each.value for each in ExportFormat} == writable | {OWN_FORMAT}


@pytest.mark.parametrize(
    ("path", "name"),
    [("muse_vqgan", "open_muse"), ("internlm_hf", "internlm_hf"), ("internlm_raw", None)],
)
def test_find_format(path, name):
    golden = Path(__file__).parents[2] / "data" / "golden"
    found = find_format(ModelSource(golden / path))
    assert found is (name and import_format(name))


def test_what_a_folder_holds_instead_is_named(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(UserError, match="holds a student, not a tokenizer: set tokenizer=PATH"):
        load_tokenizer(tmp_path)
    weights = tmp_path / "student" / "model.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    (weights.parent / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"config.json is next to it: set student={weights.parent}"):
        load_student(weights)
    (tmp_path / "raw").mkdir()
    torch.save({}, tmp_path / "raw/model_config.pt")
    for file, config, kind in (
        (weights.with_name("pytorch_model.bin"), "config.json", "tokenizer"),
        (tmp_path / "raw/model_tp0_pp0.pt", "model_config.pt", "student"),
    ):
        torch.save({"encoder.conv_in.weight": torch.zeros(1)}, file)
        message = f"their {config} is next to it: set {kind}={file.parent}"
        with pytest.raises(UserError, match=message):
            (load_tokenizer if kind == "tokenizer" else load_student)(file)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    with pytest.raises(UserError, match=f"exported no student: set student=PATH, such as {last}"):
        load_student(tmp_path / "run")


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer, as it has no config.json: set tok"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "delvm-1", "kind": "student"}')
    with pytest.raises(UserError, match=r"weights .* cannot be read"):
        load_student(tmp_path)


@pytest.mark.parametrize("name", ["llama", "internlm_hf"])
def test_students_that_normalize_queries_and_keys_are_not_exported(tmp_path, name):
    """Their norms would be left out, and the export would compute something else."""
    student = Transformer(
        TransformerConfig(
            16, 16, 1, 2, max_seq_len=8, embedding=InputEmbedding.learned, qk_norm=True
        )
    )
    with pytest.raises(UserError, match="qk_norm true"):
        import_writable_format(name).write(student, tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()
