"""`delvm export`: every layout, through the command, and nothing lost on the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from delvm.interop import weight_files as files
from delvm.interop.fingerprint import fingerprint
from delvm.interop.formats import llama
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig


@pytest.mark.parametrize("layout", ["llama", "internlm_hf"])
def test_a_student(delvm, weights, layout):
    code, out, _ = delvm("export", f"checkpoint={weights}", f"format={layout}", "output_dir=out")
    assert code == 0 and f"student of 0.0M parameters to out ({layout}, float32)" in out
    ours, again = load_student(weights), load_student("out")
    ids = torch.randint(0, 32, (2, 24))
    torch.testing.assert_close(again(ids), ours(ids), atol=1e-6, rtol=0)
    for name, tensor in ours.state_dict().items():
        assert name.startswith("embed.") or torch.equal(again.state_dict()[name], tensor)
    with safe_open("out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it, transformers 4 refuses the file
    code_files = ["modeling_internlm.py"] if layout == "internlm_hf" else []
    files_written = sorted(path.name for path in Path("out").iterdir())
    assert files_written == ["README.md", "config.json", "model.safetensors", *code_files]
    assert f"| layout | {layout} |" in Path("out/README.md").read_text()


@pytest.mark.slow
def test_a_tokenizer(delvm, tmp_path):
    config = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, num_embeddings=20)
    config.quantized_embed_dim = 8
    tokenizer = VQGAN(config)
    save_model(tokenizer, tmp_path / "t")
    words = ("export", f"checkpoint={tmp_path / 't'}", "format=open_muse", "output_dir=muse")
    code, out, _ = delvm(*words)
    assert code == 0 and "tokenizer of 20 codes to muse" in out
    assert json.loads(Path("muse/config.json").read_text())["_class_name"] == "VQGANModel"
    assert fingerprint(load_tokenizer("muse")) == fingerprint(tokenizer)
    assert delvm(*words, "overwrite=true", "dtype=bfloat16")[0] == 0
    tensors = files.read_weights(Path("muse"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_what_stands_there_stays(delvm, weights):
    student = f"checkpoint={weights}/student"
    kept = {path: path.read_bytes() for path in weights.rglob("*") if path.is_file()}
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("years of work")
    Path("a.txt").touch()
    for words, message in (
        ((student, "format=llama", "output_dir=full"), "output_dir=full exists: set overwrite"),
        ((student, "format=llama", "output_dir=full", "overwrite=true"), "holds no config.json"),
        ((student, "format=llama", "output_dir=a.txt"), "output_dir=a.txt is a file"),
        ((student, "format=open_muse", "output_dir=out"), "holds a student, not a tokenizer"),
        ((f"checkpoint={weights}", "format=open_muse", "output_dir=out"), "open-muse has no patch"),
        ((student, "format=gguf", "output_dir=out"), "format=gguf"),
        ((student, "output_dir=out"), "format"),
        (("checkpoint=none", "format=llama", "output_dir=out"), "student not found: none"),
        (
            (student, "format=llama", f"output_dir={weights}/student", "overwrite=true"),
            "would replace",
        ),
        (
            (
                f"checkpoint={weights}",
                "format=llama",
                f"output_dir={weights}/student",
                "overwrite=true",
            ),
            "would replace checkpoint=",
        ),
    ):
        code, out, err = delvm("export", *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert Path("full/thesis.txt").read_text() == "years of work"
    assert {path: path.read_bytes() for path in weights.rglob("*") if path.is_file()} == kept
    assert not Path("out").exists()


def test_it_is_written_whole_or_not_at_all(delvm, weights, monkeypatch):
    words = ("export", f"checkpoint={weights}", "format=llama", "output_dir=out", "overwrite=true")
    assert delvm(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("delvm.interop.weight_files.write_json", full)
    code, _, err = delvm(*words)
    assert code == 2 and "No space left" in err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert [path.name for path in Path.cwd().iterdir()] == ["out"]


@pytest.mark.slow
def test_a_student_with_more_ids_than_codes_can_be_prompted(delvm, weights, prompt):
    """As LVM's are: nothing in its file names the tokenizer, and BOS is its favourite."""
    torch.manual_seed(0)
    config = TransformerConfig(36, 16, 1, 2, max_seq_len=24, embedding=InputEmbedding.learned)
    student = Transformer(config)
    student.norm.weight.data.zero_()[0] = 1.0
    student.head.weight.data[32:, 0], student.token_space = 99.0, TokenSpace(32, bos=32)
    llama.write(student, "lvm")
    words = (f"tokenizer={weights}/tokenizer", "student=lvm", f"prompt={prompt}")
    words += (f"query={prompt}/000000_img.png", "output=answer.png")
    for how in (("decoding=greedy",), (), ("decoding=sample", "temperature=1")):
        code, _, err = delvm("generate", *words, *how)
        assert code == 0, err
    file = Path("lvm/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"delvm": {}}))
    code, _, err = delvm("generate", *words)
    assert code == 2 and "num_embeddings 32 (tokenizer) != 36 codes (student): set token" in err


def test_errors_name_the_keys_of_export(delvm, weights):
    student = f"{weights}/student"
    for checkpoint, layout, message in (
        ("nowhere", "llama", "student not found: nowhere"),
        (student, "open_muse", f"{student} holds a student, not a tokenizer"),
    ):
        code, _, err = delvm(
            "export", f"checkpoint={checkpoint}", f"format={layout}", "output_dir=o"
        )
        assert code == 2 and message in err and "set checkpoint=PATH" in err
