"""Students of DeLVM: its converted folders, and the checkpoints of its training engine."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.inference.prompter import Prompter
from delvm.inference.sampling import generate
from delvm.interop.formats import internlm_hf
from delvm.interop.load import load_student, load_tokenizer, save_model
from delvm.interop.weight_files import read_folder
from delvm.models.transformer import Embedding, Transformer
from tests.interop.raw_checkpoint import GOLDEN, stages, with_config, write

HF = GOLDEN / "internlm_hf"


@pytest.fixture(scope="module")
def known() -> dict[str, torch.Tensor]:
    """What the reference computed with the folder of its converter: ids, logits, greedy."""
    with np.load(HF / "golden.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def with_eps(student: Transformer, eps: float) -> Transformer:
    for module in student.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.eps = eps
    return student


@torch.no_grad()
def test_a_converted_folder_is_a_student(known):
    student = load_student(HF)
    assert (student.config.norm_eps, student.config.embedding) == (1e-6, Embedding.own)
    assert (student(known["ids"]) - known["logits"]).abs().max() < 1e-4
    assert torch.equal(generate(student, known["ids"], 32), known["greedy"])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 2, 1], [3, 1], [0, 4]], ids=str)
@pytest.mark.parametrize("tokenizer", [True, False], ids=["whole", "codes"])
def test_stages_of_any_number(tmp_path, known, sizes, tokenizer):
    """The golden logits have the epsilon that the converter puts in place of the training's."""
    student = load_student(write(tmp_path / "raw", stages(sizes, tokenizer)))
    c = student.config
    assert (c.layers, c.norm_eps, c.embedding) == (4, 1e-5, Embedding.codebook)
    assert (c.codebook_dim, c.inner, c.context) == (16, 256, 2048)
    trained = student(known["ids"])
    assert (with_eps(student, 1e-6)(known["ids"]) - known["logits"]).abs().max() < 1e-5
    assert 1e-4 < (trained - known["logits"]).abs().max() < 1e-3


def test_a_trained_checkpoint_draws_the_references_tokens(tmp_path, known):
    student = load_student(write(tmp_path / "raw", stages([2, 2])))
    assert torch.equal(generate(student, known["ids"], 32), known["greedy"])


def test_halves_are_computed_in_float32(tmp_path):
    made = [{k: v.half() for k, v in stage.items()} for stage in stages([2, 2])]
    student = load_student(write(tmp_path / "raw", made))
    weight = student.blocks[3].mlp.down.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, made[1]["model.blocks.1.mlp.w3.weight"].float())


def test_an_embedding_of_its_own(tmp_path, known):
    made = stages([4], tokenizer=False)
    codes = made[0].pop("model.embedding.vq_model.quantize.embedding.weight")
    projected = codes @ made[0].pop("model.embedding.embed_proj.weight").T
    student = load_student(write(tmp_path / "a", [made[0] | {"model.embedding.weight": projected}]))
    assert student.config.embedding is Embedding.own
    apart = load_student(write(tmp_path / "b", stages([4])))
    torch.testing.assert_close(student(known["ids"]), apart(known["ids"]), atol=1e-5, rtol=0)


def test_the_tokenizer_inside(tmp_path):
    raw = write(tmp_path / "raw", stages([2, 2]))
    golden = load_tokenizer(GOLDEN / "muse_vqgan")
    found = load_tokenizer(raw)  # for pictures of 256 px, since nothing says their size
    assert (found.config.resolution, found.config.attn_resolutions) == (256, [32])
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in golden.state_dict().items())
    assert load_tokenizer(with_config(raw)).config == golden.config
    bare = write(tmp_path / "bare", stages([4], tokenizer=False))
    with pytest.raises(UserError, match="only the codes of a tokenizer: set tokenizer=PATH"):
        load_tokenizer(bare)
    torn = stages([4])
    del torn[0]["model.embedding.vq_model.encoder.conv_out.weight"]
    with pytest.raises(UserError, match=r"not whole: 'encoder\.conv_out\.weight'"):
        load_tokenizer(write(tmp_path / "torn", torn))
    torn[0]["model.embedding.vq_model.encoder.conv_out.weight"] = torch.zeros(())
    with pytest.raises(UserError, match="not whole: len"):
        load_tokenizer(write(tmp_path / "torn", torn))


def test_codes_tell_whose_student_it_is(tmp_path):
    """A checkpoint of the engine names no tokenizer, and carries its codes."""
    student = load_student(write(tmp_path / "raw", stages([4], tokenizer=False)))
    tokenizer = load_tokenizer(GOLDEN / "muse_vqgan")
    Prompter(tokenizer, student)
    student.embed.codebook.copy_(student.embed.codebook.half())
    Prompter(tokenizer, student)
    tokenizer.quantize.embedding.weight.data[7, 3] += 1
    with pytest.raises(UserError, match="differ from those that this student contains"):
        Prompter(tokenizer, student)
    with pytest.raises(UserError, match=r"num_embeddings 1024 \(tokenizer\) != 256 codes"):
        Prompter(load_tokenizer("shapes"), student)


def test_what_is_read_is_kept_when_saved(tmp_path, known):
    student = load_student(write(tmp_path / "raw", stages([2, 2])))
    save_model(student, tmp_path / "ours")
    assert torch.equal(load_student(tmp_path / "ours")(known["ids"]), student(known["ids"]))


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("name", "tensor", "fault"),
    [
        ("model.head.weight", torch.zeros(()), r"no matrix head\.weight \(our names\)"),
        ("model.blocks.0.mlp.w1.weight", None, r"no matrix blocks\.0\.mlp\.gate\.weight"),
        ("model.embedding.embed_proj.weight", None, r"missing: embed\.project\.weight"),
        (3, torch.zeros(1), "are no state dict"),
    ],
)
def test_faults_of_weights(tmp_path, name, tensor, fault):
    (stage,) = stages([4])
    changed = {k: v for k, v in stage.items() if k != name}
    if tensor is not None:
        changed[name] = tensor
    with pytest.raises(UserError, match=fault):
        load_student(write(tmp_path / "raw", [changed]))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"num_layers": 5}, r"num_layers 5 \(model_config\.pt\) != 2 \+ 2 layers in model_tp0"),
        ({"norm_type": "layernorm"}, "norm_type layernorm is not supported, only rmsnorm"),
        ({"num_chunks": 2}, "num_chunks 2 is not supported"),
        ({"num_attention_heads": "3"}, "num_attention_heads '3' is no whole number above 0"),
        ({"num_attention_heads": 4}, "inv_freq are not the angles of heads of 24"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon None is no number above 0"),
        ({"hidden_size": 48}, "inv_freq are not the angles of heads of 16"),
    ],
)
def test_faults_of_a_config(tmp_path, settings, fault):
    with pytest.raises(UserError, match=fault):
        load_student(write(tmp_path / "raw", stages([2, 2]), **settings))


def test_faults_of_stages(tmp_path):
    raw = write(tmp_path / "raw", stages([1, 2, 1]))
    middle = raw / "model_tp0_pp1.pt"
    kept = torch.load(middle, weights_only=True)
    for change, fault in (
        ({"model.blocks.0.mlp.w4.weight": torch.zeros(1)}, r"unexpected: blocks\.1\.mlp\.w4"),
        ({"model.blocks.5.mlp.w1.weight": torch.zeros(1)}, r"layers \[0, 1, 5\] are not counted"),
        ({"model.norm.weight": torch.zeros(96)}, r"pp2\.pt holds again: norm\.weight"),
    ):
        torch.save(kept | change, middle)
        with pytest.raises(UserError, match=fault):
            load_student(raw)
    middle.unlink()
    with pytest.raises(UserError, match=r"model_tp0_pp1\.pt is missing beside model_tp0_pp2\.pt"):
        load_student(raw)
    torch.save(kept, raw / "model_tp1_pp0.pt")
    with pytest.raises(UserError, match=r"model_tp1_pp0\.pt: .* tensor parallelism"):
        load_student(raw)
    (raw / "model_config.pt").unlink()
    with pytest.raises(UserError, match=r"no model_config\.pt"):
        load_student(raw)


def test_the_engines_own_config_class_is_not_imported(tmp_path, monkeypatch):
    """The engine pickles a subclass of dict; a name is all that the file holds of it."""
    names = ["internlm", "internlm.core", "internlm.core.context"]
    names.append("internlm.core.context.parallel_context")
    module = ModuleType(names[-1])
    cls = type("Config", (dict,), {"__module__": module.__name__})
    module.Config = cls
    for name in names:
        monkeypatch.setitem(sys.modules, name, module)
    raw = write(tmp_path / "raw", stages([4]))
    settings = torch.load(raw / "model_config.pt", weights_only=True)
    nested = {"lvm_config": cls(enable=True), "dtype": torch.float16}
    torch.save(cls(settings | nested), raw / "model_config.pt")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert load_student(raw).config.layers == 4


def test_a_config_with_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    raw = write(tmp_path / "raw", stages([4]))
    torch.save({"num_layers": Trap()}, raw / "model_config.pt")
    with pytest.raises(UserError, match=r"model_config\.pt cannot be read as tensors and plain"):
        load_student(raw)
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- written


def test_a_student_is_written_as_delvm_reads_it(tmp_path):
    internlm_hf.write(load_student(HF), tmp_path / "out")
    state = torch.load(HF / "pytorch_model.bin", weights_only=True)
    again = read_folder(tmp_path / "out")
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        # the angles are computed anew, and 1 / b^x is not always b^-x to the last bit
        close = 1e-6 if name.endswith("inv_freq") else 0.0
        torch.testing.assert_close(again[name], tensor, rtol=close, atol=0.0)
    theirs = json.loads((HF / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    left_out = {"auto_map", "initializer_range", "transformers_version", "use_cache"}
    assert {k: ours.get(k) for k in theirs.keys() - left_out} == {
        k: v for k, v in theirs.items() if k not in left_out
    }
