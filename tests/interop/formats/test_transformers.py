"""Exports loaded by transformers, and models saved by transformers loaded here."""

import numpy as np
import pytest
import torch

from delvm.errors import UserError
from delvm.inference.generation import generate
from delvm.interop.formats import internlm_hf, llama
from delvm.interop.load import load_student
from delvm.models.mlp import MLPKind
from delvm.models.norm import NormKind
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Init, Transformer, TransformerConfig
from tests.interop.formats.internlm_stages import GOLDEN, stages, write

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_exported_student_matches_in_transformers(tmp_path, bias):
    torch.manual_seed(0)
    config = TransformerConfig(60, 64, 3, 4, max_seq_len=48, bias=bias, rope_base=500.0)
    config.codebook_dim, config.init, config.norm_eps = 8, Init.gpt2, 1e-3
    ours = Transformer(config, torch.randn(60, 8)).eval()
    for name, tensor in ours.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.1)
    llama.write(ours, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is transformers.LlamaForCausalLM
    ids = torch.randint(0, 60, (2, 40))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
    generated = theirs.generate(ids[:, :8], max_new_tokens=20, do_sample=False)
    assert torch.equal(generated[:, 8:], generate(ours, ids[:, :8], 20))


@torch.no_grad()
def test_checkpoint_of_delvm_matches_in_transformers(tmp_path):
    ours = load_student(write(tmp_path / "raw", stages([3, 1])))
    llama.write(ours, tmp_path / "out")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(0, 256, (2, 80))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4


@torch.no_grad()
def test_model_saved_by_transformers_loads(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8292, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, rms_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "lvm", max_shard_size="1MB")
    assert len(list((tmp_path / "lvm").glob("model-*.safetensors"))) > 1
    ours = load_student(tmp_path / "lvm")
    assert ours.token_space == TokenSpace(8192)
    ids = torch.randint(0, 8192, (2, 40))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5


@pytest.fixture
def internlm(tmp_path, monkeypatch):
    """Exports a student as internlm_hf and loads it with the class in the folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))

    def load(student, auto="AutoModelForCausalLM", dtype=torch.float32):
        internlm_hf.write(student, tmp_path / "out", dtype)
        found = getattr(transformers, auto).from_pretrained(
            tmp_path / "out", trust_remote_code=True
        )
        return found.eval()

    return load


@torch.no_grad()
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_internlm_export_brings_its_own_class(internlm, auto):
    """As DeLVM's notebook loads and prompts it; logits and tokens are DeLVM's."""
    theirs = internlm(load_student(GOLDEN / "internlm_hf"), auto)
    assert type(theirs).__name__ == "InternLMForCausalLM"
    with np.load(GOLDEN / "internlm_hf" / "golden.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file}
    assert (theirs(golden["ids"]).logits - golden["logits"]).abs().max() < 1e-4
    settings = transformers.GenerationConfig(
        temperature=0.1, top_p=0.75, num_beams=1, early_stopping=True, max_new_tokens=32
    )
    found = theirs.generate(golden["ids"], settings, return_dict_in_generate=True)
    assert torch.equal(found.sequences[:, -32:], golden["greedy"])


@torch.no_grad()
def test_internlm_export_in_half_precision_without_bias_and_with_padding(internlm):
    torch.manual_seed(0)
    config = TransformerConfig(60, 64, 3, 4, max_seq_len=48, bias=False)
    config.codebook_dim, config.init, config.norm_eps = 8, Init.gpt2, 1e-3
    ours = Transformer(config, torch.randn(60, 8)).eval()
    half = internlm(ours, dtype=torch.bfloat16)
    ids = torch.randint(0, 60, (2, 40))
    assert (half.float()(ids).logits - ours(ids)).abs().max() < 0.02
    theirs = internlm(ours)
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids[:, :8]), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    found = theirs.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert torch.equal(found[:, 11:], generate(ours, ids[:, :8], 12))
    labels = torch.nn.functional.cross_entropy(
        ours(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    torch.testing.assert_close(theirs(ids, labels=ids).loss, labels)


@torch.no_grad()
@pytest.mark.parametrize("mlp", [MLPKind.gelu, MLPKind.gelu_tanh])
@pytest.mark.parametrize("mlp_bias", [True, False])
def test_vit_student_round_trips_and_matches_in_transformers(internlm, tmp_path, mlp, mlp_bias):
    """DeLVM's ViT: LayerNorm, a GELU MLP of two layers, and the names of its converter."""
    torch.manual_seed(0)
    config = TransformerConfig(
        60, 64, 3, 4, max_seq_len=48, codebook_dim=8, init=Init.gpt2, norm_eps=1e-3,
        norm=NormKind.layernorm, mlp=mlp, mlp_bias=mlp_bias,
    )  # fmt: skip
    ours = Transformer(config, torch.randn(60, 8)).eval()
    for name, tensor in ours.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(tensor, std=0.2)
    assert config.resolved_ffn_dim == 256
    theirs = internlm(ours)
    ids = torch.randint(0, 60, (2, 40))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-5
    again = load_student(tmp_path / "out")
    assert (again.config.norm, again.config.mlp, again.config.mlp_bias) == (
        NormKind.layernorm,
        mlp,
        mlp_bias,
    )
    assert (again(ids) - ours(ids)).abs().max() < 1e-5
    with pytest.raises(UserError, match="set format=internlm_hf"):
        llama.write(ours, tmp_path / "llama")
