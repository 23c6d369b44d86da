"""InternLMForCausalLM folders, as written by DeLVM's converter to transformers.

The input embedding is stored as the product of the tokenizer's codebook and its projection. The
converter writes another RMSNorm epsilon than the training used; the epsilon in the file is used.
"""

from pathlib import Path

import torch

from delvm.errors import UserError
from delvm.interop.formats import hf_decoder
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.weight_files import read_weights, write_model_dir
from delvm.models.transformer import Transformer

ARCHITECTURE = "InternLMForCausalLM"
ROPE_BASE = 10000.0
# The class for transformers, written next to the weights. A text file here, since the package does
# not depend on transformers.
MODELING = "modeling_internlm"
_CODE = Path(__file__).with_name(f"{MODELING}.py.txt")


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
    config = hf_decoder.import_config(source.config, "bias", source.path / "config.json")
    tied = source.config.get("tie_word_embeddings") is True
    state = hf_decoder.import_weights(read_weights(source.path), config, source.path, tied)
    return {"kind": "student", "config": config}, state


def write(student: Transformer, output_dir: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a student as DeLVM's own class reads it. The folder appears complete or not at all.

    A class for transformers is written with it, which ``auto_map`` in config.json names, so
    ``AutoModel.from_pretrained(DIR, trust_remote_code=True)`` loads the folder.

    Raises:
        UserError: the student has another rope base, or ids that are not codes.
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
    config = hf_decoder.export_config(student, ARCHITECTURE, dtype)
    config |= {"model_type": "internlm", "bias": cfg.bias}
    auto = {"AutoModel": ARCHITECTURE, "AutoModelForCausalLM": ARCHITECTURE}
    auto |= {"AutoConfig": "InternLMConfig"}
    config["auto_map"] = {name: f"{MODELING}.{each}" for name, each in auto.items()}
    state = hf_decoder.export_weights(student, dtype)
    for layer in range(cfg.n_layers):  # the class has them in its state dict
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        state[name] = hf_decoder.inv_freq(cfg.head_dim, cfg.rope_base)
    code = _CODE.read_text(encoding="utf-8")
    write_model_dir(output_dir, state, config, files={f"{MODELING}.py": code})
