"""Students of DeLVM: folders of its converter, and checkpoints of its training engine."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.inference.generation import generate
from delvm.inference.prompter import Prompter
from delvm.interop.formats import internlm_hf
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.interop.weight_files import read_weights
from delvm.models.mlp import MLPKind
from delvm.models.norm import NormKind
from delvm.models.transformer import InputEmbedding, Transformer
from tests.interop.formats.internlm_stages import GOLDEN, stages, with_config, write

HF = GOLDEN / "internlm_hf"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Outputs of DeLVM for the folder of its converter: ids, logits, greedy tokens."""
    with np.load(HF / "golden.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def with_eps(student: Transformer, eps: float) -> Transformer:
    for module in student.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.eps = eps
    return student


@torch.no_grad()
def test_converted_folder_matches_golden_logits(golden):
    student = load_student(HF)
    assert (student.config.norm_eps, student.config.embedding) == (1e-6, InputEmbedding.learned)
    assert (student(golden["ids"]) - golden["logits"]).abs().max() < 1e-4
    assert torch.equal(generate(student, golden["ids"], 32), golden["greedy"])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 2, 1], [3, 1], [0, 4]], ids=str)
@pytest.mark.parametrize("tokenizer", [True, False], ids=["with_tokenizer", "codebook_only"])
def test_any_number_of_stages_matches_golden_logits(tmp_path, golden, sizes, tokenizer):
    """The golden logits have the converter's epsilon, not that of the training."""
    student = load_student(write(tmp_path / "raw", stages(sizes, tokenizer)))
    c = student.config
    assert (c.n_layers, c.norm_eps, c.embedding) == (4, 1e-5, InputEmbedding.codebook)
    assert (c.codebook_dim, c.resolved_ffn_dim, c.max_seq_len) == (16, 256, 2048)
    trained = student(golden["ids"])
    assert (with_eps(student, 1e-6)(golden["ids"]) - golden["logits"]).abs().max() < 1e-5
    assert 1e-4 < (trained - golden["logits"]).abs().max() < 1e-3


def test_checkpoint_generates_the_same_tokens_as_delvm(tmp_path, golden):
    student = load_student(write(tmp_path / "raw", stages([2, 2])))
    assert torch.equal(generate(student, golden["ids"], 32), golden["greedy"])


def test_half_precision_weights_load_as_float32(tmp_path):
    built = [{k: v.half() for k, v in stage.items()} for stage in stages([2, 2])]
    student = load_student(write(tmp_path / "raw", built))
    weight = student.blocks[3].mlp.down.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, built[1]["model.blocks.1.mlp.w3.weight"].float())


def test_learned_embedding_equals_codebook_times_projection(tmp_path, golden):
    built = stages([4], tokenizer=False)
    codes = built[0].pop("model.embedding.vq_model.quantize.embedding.weight")
    projected = codes @ built[0].pop("model.embedding.embed_proj.weight").T
    student = load_student(
        write(tmp_path / "a", [built[0] | {"model.embedding.weight": projected}])
    )
    assert student.config.embedding is InputEmbedding.learned
    apart = load_student(write(tmp_path / "b", stages([4])))
    torch.testing.assert_close(student(golden["ids"]), apart(golden["ids"]), atol=1e-5, rtol=0)


def test_tokenizer_inside_checkpoint(tmp_path):
    raw = write(tmp_path / "raw", stages([2, 2]))
    golden = load_tokenizer(GOLDEN / "muse_vqgan")
    found = load_tokenizer(raw)  # for images of 256 px, since their size is not recorded
    assert (found.config.resolution, found.config.attn_resolutions) == (256, [32])
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in golden.state_dict().items())
    assert load_tokenizer(with_config(raw)).config == golden.config
    bare = write(tmp_path / "bare", stages([4], tokenizer=False))
    with pytest.raises(UserError, match="only the codebook of a tokenizer: set tokenizer=PATH"):
        load_tokenizer(bare)
    incomplete = stages([4])
    del incomplete[0]["model.embedding.vq_model.encoder.conv_out.weight"]
    with pytest.raises(UserError, match=r"incomplete: 'encoder\.conv_out\.weight'"):
        load_tokenizer(write(tmp_path / "incomplete", incomplete))
    incomplete[0]["model.embedding.vq_model.encoder.conv_out.weight"] = torch.zeros(())
    with pytest.raises(UserError, match="incomplete: len"):
        load_tokenizer(write(tmp_path / "incomplete", incomplete))


def test_codebook_identifies_the_tokenizer(tmp_path):
    """A checkpoint of the engine has no fingerprint, but it has the tokenizer's codebook."""
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


def test_save_model_keeps_logits(tmp_path, golden):
    student = load_student(write(tmp_path / "raw", stages([2, 2])))
    save_model(student, tmp_path / "ours")
    assert torch.equal(load_student(tmp_path / "ours")(golden["ids"]), student(golden["ids"]))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.head.weight", torch.zeros(()), r"no matrix head\.weight \(DeLVM's names\)"),
        ("model.blocks.0.mlp.w1.weight", None, r"no matrix blocks\.0\.mlp\.gate\.weight"),
        ("model.embedding.embed_proj.weight", None, r"missing: embed\.project\.weight"),
        (3, torch.zeros(1), "are not a state dict"),
    ],
)
def test_invalid_weights_are_refused(tmp_path, name, tensor, message):
    (stage,) = stages([4])
    changed = {k: v for k, v in stage.items() if k != name}
    if tensor is not None:
        changed[name] = tensor
    with pytest.raises(UserError, match=message):
        load_student(write(tmp_path / "raw", [changed]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 5}, r"num_layers 5 \(model_config\.pt\) != 2 \+ 2 layers in model_tp0"),
        ({"norm_type": "none"}, "norm_type none is not supported, only rmsnorm and layernorm"),
        ({"num_chunks": 2}, "num_chunks 2 is not supported"),
        ({"num_attention_heads": "3"}, "num_attention_heads '3' is not a positive integer"),
        ({"num_attention_heads": 4}, "inv_freq does not match head_dim 24"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon None is not a positive number"),
        ({"hidden_size": 48}, "inv_freq does not match head_dim 16"),
    ],
)
def test_unsupported_config_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        load_student(write(tmp_path / "raw", stages([2, 2]), **settings))


def test_inconsistent_stages_are_refused(tmp_path):
    raw = write(tmp_path / "raw", stages([1, 2, 1]))
    middle = raw / "model_tp0_pp1.pt"
    kept = torch.load(middle, weights_only=True)
    for change, message in (
        ({"model.blocks.0.mlp.w4.weight": torch.zeros(1)}, r"unexpected: blocks\.1\.mlp\.w4"),
        ({"model.blocks.5.mlp.w1.weight": torch.zeros(1)}, r"layers \[0, 1, 5\] do not run from 0"),
        ({"model.norm.weight": torch.zeros(96)}, r"pp2\.pt repeats weights: norm\.weight"),
    ):
        torch.save(kept | change, middle)
        with pytest.raises(UserError, match=message):
            load_student(raw)
    middle.unlink()
    with pytest.raises(UserError, match=r"model_tp0_pp1\.pt is missing next to model_tp0_pp2\.pt"):
        load_student(raw)
    torch.save(kept, raw / "model_tp1_pp0.pt")
    with pytest.raises(UserError, match=r"model_tp1_pp0\.pt: .* tensor parallelism"):
        load_student(raw)
    (raw / "model_config.pt").unlink()
    with pytest.raises(UserError, match=r"model_config\.pt is missing next to the stages"):
        load_student(raw)


def test_config_class_of_the_engine_is_not_imported(tmp_path, monkeypatch):
    """The engine pickles a subclass of dict, which is only named in the file."""
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
    assert load_student(raw).config.n_layers == 4


def test_config_with_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    raw = write(tmp_path / "raw", stages([4]))
    torch.save({"num_layers": Trap()}, raw / "model_config.pt")
    with pytest.raises(UserError, match=r"model_config\.pt cannot be read as tensors and plain"):
        load_student(raw)
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- export


def test_export_matches_the_converter_of_delvm(tmp_path):
    internlm_hf.write(load_student(HF), tmp_path / "out")
    state = torch.load(HF / "pytorch_model.bin", weights_only=True)
    again = read_weights(tmp_path / "out")
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        # inverse frequencies are computed again, and 1 / b^x is not always b^-x to the last bit
        close = 1e-6 if name.endswith("inv_freq") else 0.0
        torch.testing.assert_close(again[name], tensor, rtol=close, atol=0.0)
    expected_config = json.loads((HF / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    left_out = {"auto_map", "initializer_range", "transformers_version", "use_cache"}
    assert {k: ours.get(k) for k in expected_config.keys() - left_out} == {
        k: v for k, v in expected_config.items() if k not in left_out
    }


def test_export_records_the_tokenizer_and_how_images_were_resized(tmp_path):
    student = load_student(HF)
    assert (student.tokenizer_fingerprint, student.resize) == ("", "")
    student.tokenizer_fingerprint, student.resize = "0123456789abcdef", "pad"
    internlm_hf.write(student, tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert (again.tokenizer_fingerprint, again.resize) == ("0123456789abcdef", "pad")


@torch.no_grad()
@pytest.mark.parametrize("mlp_bias", [True, False])
def test_vit_checkpoint_loads(tmp_path, mlp_bias):
    """The names of `modeling_vit` in DeLVM's engine: LayerNorm, and fc1 and fc2 with GELU."""
    torch.manual_seed(0)
    built = stages([2, 2])
    for stage in built:
        for name in [name for name in stage if ".mlp.w" in name]:
            tensor = stage.pop(name)
            if "mlp.w2" in name:
                stage[name.replace("mlp.w2", "mlp.fc1")] = tensor
            if "mlp.w3" in name:
                stage[name.replace("mlp.w3", "mlp.fc2")] = tensor
        for name in [name for name in stage if "norm" in name]:
            stage[name.replace("weight", "bias")] = torch.randn(96)
        for name in [name for name in stage if mlp_bias and ".mlp.fc" in name]:
            stage[name.replace("weight", "bias")] = torch.randn(len(stage[name]))
    student = load_student(write(tmp_path / "vit", built, norm_type="layernorm"))
    config = student.config
    assert (config.norm, config.mlp) == (NormKind.layernorm, MLPKind.gelu_tanh)
    assert (config.mlp_bias, config.resolved_ffn_dim) == (mlp_bias, 256)
    block, x = student.blocks[0], torch.randn(2, 3, 96)
    first = built[0]
    bias = [first.get(f"model.blocks.0.mlp.fc{i}.bias") for i in (1, 2)]
    fc1, fc2 = (first[f"model.blocks.0.mlp.fc{i}.weight"] for i in (1, 2))
    linear, gelu = torch.nn.functional.linear, torch.nn.functional.gelu
    expected = linear(gelu(linear(x, fc1, bias[0]), approximate="tanh"), fc2, bias[1])
    torch.testing.assert_close(block.mlp(x), expected)
    with pytest.raises(UserError, match="norm_type other is not supported"):
        load_student(write(tmp_path / "other", built, norm_type="other"))
