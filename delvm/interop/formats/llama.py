"""LlamaForCausalLM of transformers: LVM's students, and exports for other programs.

LVM (https://github.com/ytongbai/LVM) has 8,192 codes and special tokens beyond them, and squashes
images. Its config.json does not say so; it names ids 1 and 2 as BOS and EOS, as Llama's text models
do, which are codes here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from delvm.errors import UserError
from delvm.interop.formats import hf_decoder
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.weight_files import NO_FILES, read_weights, write_model_dir
from delvm.models.mlp import MLPKind
from delvm.models.norm import NormKind
from delvm.models.transformer import Transformer

ARCHITECTURE = "LlamaForCausalLM"
LVM_CODEBOOK_SIZE = 8192
LVM_RESIZE = "squash"  # of `delvm.data.resizing.ResizeMode`


def matches(source: ModelSource) -> bool:
    """Whether config.json names the architecture."""
    return (
        source.config.get("architectures") == [ARCHITECTURE]
        or source.config.get("model_type") == "llama"
    )


def read(source: ModelSource, kind: str) -> ModelData:
    """Metadata and weights of a student.

    Raises:
        UserError: `Transformer` does not support the config, or the weights cannot be read.
    """
    file = source.path / "config.json"
    config = hf_decoder.import_config(source.config, "attention_bias", file)
    tied = source.config.get("tie_word_embeddings") is True
    state = hf_decoder.import_weights(read_weights(source.path), config, source.path, tied)
    space = guess_token_space(source.config)
    metadata: dict[str, Any] = {"space": space}
    if own := hf_decoder.recorded_metadata(source.config):
        metadata |= own
    elif space["codebook_size"] == LVM_CODEBOOK_SIZE < config["vocab_size"]:
        metadata["resize"] = LVM_RESIZE
    return metadata | {"kind": "student", "config": config}, state


def guess_token_space(config: dict[str, Any]) -> dict[str, int | None]:
    """Fields of `TokenSpace` for a config.json that does not declare them.

    Ids at the end of the vocabulary that config.json names as special are not codes. Without any,
    the first 8,192 of more than 8,192 ids are taken as codes, as in LVM. A BOS or EOS among the
    codes is a default of transformers, and ignored.
    """
    codebook_size = vocab_size = config["vocab_size"]
    special_ids = [config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    while codebook_size > 1 and codebook_size - 1 in special_ids:
        codebook_size -= 1
    if codebook_size == vocab_size:
        codebook_size = min(vocab_size, LVM_CODEBOOK_SIZE)
    space: dict[str, int | None] = {"codebook_size": codebook_size}
    for name in ("bos", "eos"):
        value = config.get(f"{name}_token_id")
        special = type(value) is int and codebook_size <= value < vocab_size
        space[name] = value if special else None
    return space


def write(
    student: Transformer,
    output_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Write a student as transformers reads it. The folder appears complete or not at all.

    The input embedding is written as a plain table, so the student read back has
    ``embedding: learned``.

    Raises:
        UserError: its blocks are not Llama's.
    """
    cfg = student.config
    if cfg.norm is not NormKind.rmsnorm or cfg.mlp is not MLPKind.swiglu or cfg.mlp_bias:
        raise UserError(
            f"norm {cfg.norm.value}, mlp {cfg.mlp.value}, mlp_bias {str(cfg.mlp_bias).lower()} "
            "(student) != rmsnorm, swiglu, false (Llama): set format=internlm_hf"
        )
    config = hf_decoder.export_config(student, ARCHITECTURE, dtype) | {
        "model_type": "llama",
        "attention_bias": cfg.bias,
        "mlp_bias": False,
        "num_key_value_heads": cfg.n_heads,
        "head_dim": cfg.head_dim,
        "rope_theta": cfg.rope_base,
        "rope_scaling": None,
    }
    weights = hf_decoder.export_weights(student, dtype)
    write_model_dir(output_dir, weights, config, files=files)
