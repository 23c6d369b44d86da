"""Students in the format of Llama: those of LVM, and exports of ours."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from delvm.data.resizing import ResizeMode
from delvm.errors import UserError
from delvm.inference.decoding import GREEDY, SamplingConfig
from delvm.inference.generation import generate
from delvm.interop.fingerprint import check_tokenizer_match
from delvm.interop.formats import llama
from delvm.interop.load import load_student
from delvm.interop.save import config_dict, save_model
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig

CODES, IDS = 8192, 8292  # of LVM: 100 special tokens beyond the codes


def student(**changes: object) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, object] = {"vocab_size": 40, "dim": 32, "n_layers": 3, "n_heads": 4}
    values |= {"max_seq_len": 24, "ffn_dim": 48, "norm_eps": 3e-6, "rope_base": 5000.0}
    values |= {"embedding": InputEmbedding.learned, "init": Init.gpt2}
    model = Transformer(TransformerConfig(**(values | changes))).eval()  # type: ignore[arg-type]
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor)
    return model


def rounded(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The same model with weights that a type of fewer bits holds exactly."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype).float()
    return model


def edit(folder: Path, **values: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def lvm(folder: Path) -> tuple[Transformer, Path]:
    """A student as LVM has it: no bias, float16 shards, stored inv_freq, few config keys."""
    model = student(vocab_size=IDS, bias=False, rope_base=10000.0, norm_eps=1e-6)
    model = rounded(model, torch.float16)
    llama.write(model, folder, torch.float16)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    inv_freq = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    files: dict[str, str] = {}
    for layer in range(4):
        part = {k: v for k, v in state.items() if k.startswith(f"model.layers.{layer}.")}
        part |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": inv_freq.half()}
        if layer == 3:
            part = {k: v for k, v in state.items() if "layers" not in k}
        file = f"pytorch_model-{layer + 1:05d}-of-00004.bin"
        torch.save(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    for name in ("delvm", "attention_bias", "mlp_bias", "rope_theta", "head_dim"):
        del config[name]
    config |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder


def test_student_of_lvm_loads(tmp_path):
    model, folder = lvm(tmp_path / "lvm")
    found = load_student(folder)
    assert found.token_space == TokenSpace(
        CODES
    )  # 1 and 2 are codes, though config.json names them BOS and EOS
    assert (found.config.bias, found.config.vocab_size) == (False, IDS)
    assert found.resize == ResizeMode.squash
    assert found.config.norm_eps == 1e-6
    ids = torch.randint(0, CODES, (2, 20))
    assert torch.equal(found(ids), model(ids))
    save_model(found, tmp_path / "ours")
    assert load_student(tmp_path / "ours").token_space == TokenSpace(CODES)


def test_special_tokens_are_never_generated(tmp_path):
    _, folder = lvm(tmp_path / "lvm")
    found = load_student(folder)
    found.head.weight.data[CODES:] += 9 * found.head.weight.data.std()
    found.norm.weight.data.fill_(100.0)
    prefix = torch.randint(0, CODES, (4, 8))
    likeliest = found(prefix)[:, -1].argmax(-1)
    assert (likeliest >= CODES).any()
    for sampling in (
        GREEDY,
        SamplingConfig(temperature=1.0),
        SamplingConfig(temperature=1.0, top_p=0.9, top_k=50),
        SamplingConfig("mean_embedding"),
    ):
        found_ids = generate(found, prefix, 12, sampling, codebook=torch.randn(CODES, 4))
        assert found_ids.max() < CODES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_export_and_load_round_trip(tmp_path, dtype):
    model = rounded(student(), dtype)
    model.token_space, model.tokenizer_fingerprint = TokenSpace(36, 36, 37), "0123456789abcdef"
    llama.write(model, tmp_path / "out", dtype)
    again = load_student(tmp_path / "out")
    assert again.config == TransformerConfig(**vars(model.config) | {"init": again.config.init})
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.randint(0, 40, (2, 20))
    assert torch.equal(again(ids), model(ids))
    assert (again.token_space, again.tokenizer_fingerprint) == (
        model.token_space,
        "0123456789abcdef",
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (36, 37)


@pytest.mark.parametrize(
    ("vocab_size", "names", "expected"),
    [
        (36, {"bos_token_id": 1, "eos_token_id": 2}, TokenSpace(36)),
        (36, {"bos_token_id": 34, "eos_token_id": 35}, TokenSpace(34, 34, 35)),
        (36, {"eos_token_id": 34, "pad_token_id": 35}, TokenSpace(34, None, 34)),
        (36, {"bos_token_id": 30}, TokenSpace(36)),
        (16386, {"bos_token_id": 16384, "eos_token_id": 16385}, TokenSpace(16384, 16384, 16385)),
        (8292, {"bos_token_id": 8192, "eos_token_id": [2]}, TokenSpace(8192, 8192)),
    ],
)
def test_token_space_of_a_config_that_declares_none(vocab_size, names, expected):
    found = llama.guess_token_space({"vocab_size": vocab_size, **names})
    assert TokenSpace(**found) == expected


def test_padded_vocabulary_can_be_declared(tmp_path):
    """The vocabulary of 32 codes is padded to 40."""
    llama.write(student(), tmp_path / "s")
    edit(tmp_path / "s", delvm=None)
    tokenizer = VQGAN(VQGANConfig(16, hidden_channels=32, channel_mult=[1, 1], num_embeddings=32))
    with pytest.raises(UserError, match="32 .tokenizer. != 40 codes") as error:
        check_tokenizer_match(tokenizer, load_student(tmp_path / "s"))
    declared = re.search(r'add "delvm": (\{.*\}) to its config.json', str(error.value))
    edit(tmp_path / "s", delvm=json.loads(declared[1]))
    check_tokenizer_match(tokenizer, load_student(tmp_path / "s"))


def test_codebook_embedding_is_exported_as_learned(tmp_path):
    config = TransformerConfig(20, 32, 2, 2, max_seq_len=16, codebook_dim=8, init=Init.gpt2)
    model = Transformer(config, torch.randn(20, 8)).eval()
    llama.write(model, tmp_path / "out")
    again = load_student(tmp_path / "out")
    assert again.config.embedding is InputEmbedding.learned
    assert torch.equal(again.embed.weight, model.embed(torch.arange(20)))
    ids = torch.randint(0, 20, (2, 16))
    torch.testing.assert_close(again(ids), model(ids), atol=1e-6, rtol=0)


def test_tied_embedding(tmp_path):
    llama.write(student(), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "out" / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: head\.weight"):
        load_student(tmp_path / "out")
    tied = load_student(edit(tmp_path / "out", tie_word_embeddings=True))
    assert torch.equal(tied.head.weight, tied.embed.weight)


def test_rope_parameters_of_transformers_5(tmp_path):
    llama.write(student(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_theta": 5000.0, "rope_type": "default"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert load_student(tmp_path / "out").config.rope_base == 5000.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads 2 != num_attention_heads 4"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not support"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type 'llama3' is not supported"),
        ({"rope_scaling": "yarn"}, "rope_type 'yarn' is not supported"),
        ({"rope_theta": -1}, "rope_theta -1 is not a positive number"),
        ({"hidden_act": "gelu"}, "hidden_act gelu is not supported, only silu"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"head_dim": 16}, "head_dim 16 x 4 heads != hidden_size 32"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not a positive integer"),
        ({"num_hidden_layers": 2}, r"unexpected: blocks\.2"),
        ({"attention_bias": False}, r"unexpected: blocks\.0\.attention\.out\.bias"),
        ({"vocab_size": 41}, r"head\.weight \(40, 32\) != \(41, 32\)"),
        ({"delvm": {"space": {"codes": 41}}}, r"codebook_size 41 is not one of 40 ids"),
        ({"delvm": {"space": {"codes": 30, "bos": 40}}}, r"bos 40 is not one of 40 ids"),
        (
            {"delvm": {"space": {"codes": 30, "pad": 1}}},
            "space .*: expected the keys bos, codebook_size, eos",
        ),
        ({"delvm": {"space": {"codes": 30, "eos": 3}}}, "eos=3 is an image token"),
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "is not in a known format: delvm-1",
        ),
    ],
)
def test_unsupported_config_is_refused(tmp_path, values, message):
    llama.write(student(), tmp_path / "out")
    with pytest.raises(UserError, match=message):
        load_student(edit(tmp_path / "out", **values))


def test_invalid_weights_are_refused(tmp_path):
    llama.write(student(), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    with pytest.raises(UserError, match="inv_freq does not match head_dim 8 and rope base 5000"):
        load_student(tmp_path / "out")
    key = "model.layers.0.self_attn.k_proj.weight"
    save_file(state | {key: torch.zeros(16, 32)}, file)
    with pytest.raises(UserError, match=r"missing: blocks\.0\.attention\.qkv\.weight.*k_proj"):
        load_student(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["rms_norm_eps"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: missing keys: rms_norm_eps"):
        load_student(tmp_path / "out")


def test_lightning_checkpoint_keeps_the_token_space(tmp_path):
    model = student()
    model.token_space = TokenSpace(36, bos=36)
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "delvm": config_dict(model)}, tmp_path / "last.ckpt")
    assert load_student(tmp_path / "last.ckpt").token_space == model.token_space
