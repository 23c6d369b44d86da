"""InternLMForCausalLM folders, as DeLVM's converter to transformers writes them.

The input embedding in them is the codebook multiplied out by its projection. The converter writes
an RMSNorm epsilon other than that of the training; what the file says is what is computed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.interop.formats import hf_decoder
from delvm.models.transformer import Transformer
from delvm.storage import atomic_dir, write_json

CLASS = "InternLMForCausalLM"
ROPE_BASE = 10000.0


def recognises(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return config.get("architectures") == [CLASS] or config.get("model_type") == "internlm"


def read(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of a student.

    Args:
        folder: that holds the weights.
        config: its config.json.

    Raises:
        UserError: the config says what `Transformer` cannot be, or the weights cannot be read.
    """
    ours = hf_decoder.read_config(config, "bias", folder / "config.json")
    tied = config.get("tie_word_embeddings") is True
    found = hf_decoder.read_weights(weights.read_folder(folder), ours, folder, tied)
    return {"kind": "student", "config": ours}, found


def write(student: Transformer, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a student as the class of DeLVM reads it, whole or not at all.

    Raises:
        UserError: it has what the layout cannot express.
    """
    c = student.config
    if c.rope_base != ROPE_BASE:
        raise UserError(
            f"InternLM has no other rope_base than {ROPE_BASE:g}, this student has "
            f"{c.rope_base:g}: set format=llama"
        )
    if student.space.codes != c.vocab_size:
        raise UserError(
            f"InternLM has no ids but codes, this student has {c.vocab_size} ids and "
            f"{student.space.codes} codes: set format=llama"
        )
    config = hf_decoder.write_config(student, CLASS, dtype)
    config |= {"model_type": "internlm", "bias": c.bias}
    tensors = hf_decoder.write_weights(student, dtype)
    for layer in range(c.layers):  # the class keeps them among its weights
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors[name] = hf_decoder.frequencies(c.head_width, c.rope_base)
    with atomic_dir(folder) as part:
        weights.write_tensors(part / "model.safetensors", tensors)
        write_json(part / "config.json", config)
