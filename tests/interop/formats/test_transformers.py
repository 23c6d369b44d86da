"""Exports loaded by transformers, and models saved by transformers loaded here."""

import pytest
import torch

from delvm.inference.sampling import generate
from delvm.interop.formats import llama
from delvm.interop.load import load_student
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Init, Transformer, TransformerConfig
from tests.interop.formats.internlm_stages import stages, write

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
