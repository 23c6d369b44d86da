"""Students in the format of Llama: those of LVM, and exports of ours."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from delvm.inference.decoding import GREEDY, SamplingConfig
from delvm.inference.generation import generate
from delvm.interop.formats import llama
from delvm.interop.load import load_student
from delvm.interop.save import save_model
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig

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
