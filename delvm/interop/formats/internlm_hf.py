"""InternLMForCausalLM folders, as written by DeLVM's converter to transformers.

The input embedding is stored as the product of the tokenizer's codebook and its projection. The
converter writes another RMSNorm epsilon than the training used; the epsilon in the file is used.

Its "ViT" (``model_type: vit``) has the same class name, with LayerNorm and an MLP of two layers.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.interop.formats import hf_decoder
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.weight_files import NO_FILES, read_weights, write_model_dir
from delvm.models.mlp import MLPKind
from delvm.models.norm import NormKind
from delvm.models.transformer import Transformer

ARCHITECTURE = "InternLMForCausalLM"
ROPE_BASE = 10000.0
# The class for transformers, written next to the weights. A text file here, since the package does
# not depend on transformers.
MODELING = "modeling_internlm"
_CODE = Path(__file__).with_name(f"{MODELING}.py.txt")


# hidden_act of a ViT -> `MLPKind`. DeLVM trains with the approximation and converts to the other.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def matches(source: ModelSource) -> bool:
    """Whether config.json names the architecture."""
    return (
        source.config.get("architectures") == [ARCHITECTURE]
        or source.config.get("model_type") == "internlm"
    )


def read(source: ModelSource, kind: str) -> ModelData:
    """Metadata and weights of a student.

    Raises:
        UserError: `Transformer` does not support the config, or the weights cannot be read.
    """
    file = source.path / "config.json"
    tied = source.config.get("tie_word_embeddings") is True
    state = read_weights(source.path)
    if source.config.get("model_type") != "vit":
        config = hf_decoder.import_config(source.config, "bias", file)
    else:
        config = _import_vit_config(source.config, file)
        names = (("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj"))
        state = _rename(state, names)
    metadata = hf_decoder.recorded_metadata(source.config) | {"kind": "student", "config": config}
    return metadata, hf_decoder.import_weights(state, config, source.path, tied)


def _import_vit_config(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Fields of `TransformerConfig` of a ViT."""
    if "norm_eps" not in config:
        raise UserError(f"{file}: missing keys: norm_eps")
    if (act := config.get("hidden_act", "gelu")) not in _ACTIVATIONS:
        raise UserError(
            f"{file}: hidden_act {act} is not supported, only {', '.join(_ACTIVATIONS)}"
        )
    shared = config | {"rms_norm_eps": config["norm_eps"], "hidden_act": "silu", "mlp_bias": False}
    return hf_decoder.import_config(shared, "bias", file) | {
        "norm": NormKind.layernorm.value,
        "mlp": _ACTIVATIONS[act],
        "mlp_bias": config.get("mlp_bias", False) is True,
    }


def _rename(state: dict[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """A state dict in which each part of a name is replaced by another."""
    for before, after in names:
        state = {name.replace(f".{before}.", f".{after}."): each for name, each in state.items()}
    return state


def write(
    student: Transformer,
    output_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Write a student as DeLVM's own class reads it. The folder appears complete or not at all.

    A class for transformers is written with it, which ``auto_map`` in config.json names, so
    ``AutoModel.from_pretrained(DIR, trust_remote_code=True)`` loads the folder.

    Raises:
        UserError: the student has another rope base, blocks of another kind, or ids that are not
            codes.
    """
    cfg = student.config
    if cfg.rope_base != ROPE_BASE:
        raise UserError(
            f"rope_base {cfg.rope_base:g} (student) != {ROPE_BASE:g} (InternLM supports no other): "
            "set format=llama"
        )
    if student.token_space.codebook_size != cfg.vocab_size:
        raise UserError(
            f"vocab_size {cfg.vocab_size} (student) != codebook_size "
            f"{student.token_space.codebook_size}: "
            "InternLM has no special tokens: set format=llama"
        )
    is_vit = cfg.norm is NormKind.layernorm
    if is_vit == (cfg.mlp is MLPKind.swiglu):
        raise UserError(
            f"norm {cfg.norm.value} and mlp {cfg.mlp.value} (student): InternLM has rmsnorm with "
            "swiglu, or layernorm with gelu"
        )
    if cfg.mlp_bias and not is_vit:
        raise UserError("mlp_bias true (student) != false (InternLM with swiglu)")
    config = hf_decoder.export_config(student, ARCHITECTURE, dtype)
    config |= {"model_type": "internlm", "bias": cfg.bias}
    if is_vit:
        act = "gelu_new" if cfg.mlp is MLPKind.gelu_tanh else "gelu"
        config |= {"model_type": "vit", "hidden_act": act, "mlp_bias": cfg.mlp_bias}
        config["norm_eps"] = config.pop("rms_norm_eps")
    auto = {"AutoModel": ARCHITECTURE, "AutoModelForCausalLM": ARCHITECTURE}
    auto |= {"AutoConfig": "InternLMConfig"}
    config["auto_map"] = {name: f"{MODELING}.{each}" for name, each in auto.items()}
    state = hf_decoder.export_weights(student, dtype)
    for layer in range(cfg.n_layers):  # the class has them in its state dict
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        state[name] = hf_decoder.inv_freq(cfg.head_dim, cfg.rope_base)
    code = _CODE.read_text(encoding="utf-8")
    if is_vit:
        state = _rename(state, (("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2")))
        code = code.replace('model_type = "internlm"', 'model_type = "vit"')
    write_model_dir(output_dir, state, config, files={f"{MODELING}.py": code, **files})
