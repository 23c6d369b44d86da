"""LlamaForCausalLM of transformers: LVM's students, and what other programs read of ours.

LVM (https://github.com/ytongbai/LVM) has 8,192 codes, and ids of no picture beyond them; its
config.json does not say so, and names as BOS and EOS the ids 1 and 2 of Llama's texts, which are
codes here. Our own exports say both, and the tokenizer's fingerprint, under the key ``delvm``,
which transformers carries along.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm import legacy
from delvm.interop import weight_files as weights
from delvm.interop.formats import hf_decoder
from delvm.models.transformer import Transformer
from delvm.storage import atomic_dir, write_json

CLASS = "LlamaForCausalLM"
LVM_CODES = 8192


def recognises(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return config.get("architectures") == [CLASS] or config.get("model_type") == "llama"


def read(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of a student.

    Args:
        folder: that holds the weights.
        config: its config.json.

    Raises:
        UserError: the config says what `Transformer` cannot be, or the weights cannot be read.
    """
    place = folder / "config.json"
    ours = hf_decoder.read_config(config, "attention_bias", place)
    tied = config.get("tie_word_embeddings") is True
    found = hf_decoder.read_weights(weights.read_folder(folder), ours, folder, tied)
    said = config.get("delvm")
    description = {"space": space(config)} | (
        legacy.upgrade_model_metadata(said) if isinstance(said, dict) else {}
    )
    return description | {"kind": "student", "config": ours}, found


def space(config: dict[str, Any]) -> dict[str, int | None]:
    """Fields of `TokenSpace`, as far as a config.json of somebody else's tells.

    Of more than 8,192 ids, the first 8,192 are taken for pictures, as in LVM. A BOS or an EOS
    among the pictures is the default of transformers, and none.
    """
    codes = min(config["vocab_size"], LVM_CODES)
    ends = {name: config.get(f"{name}_token_id") for name in ("bos", "eos")}
    return {"codes": codes} | {
        name: value if type(value) is int and codes <= value < config["vocab_size"] else None
        for name, value in ends.items()
    }


def write(student: Transformer, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a student as transformers reads it, whole or not at all.

    The input embedding is written multiplied out: what is read back has one of its own.
    """
    c = student.config
    config = hf_decoder.write_config(student, CLASS, dtype) | {
        "model_type": "llama",
        "attention_bias": c.bias,
        "mlp_bias": False,
        "num_key_value_heads": c.heads,
        "head_dim": c.head_width,
        "rope_theta": c.rope_base,
        "rope_scaling": None,
        "delvm": {
            "space": asdict(student.space),
            "tokenizer_fingerprint": student.tokenizer_fingerprint,
        },
    }
    tensors = hf_decoder.write_weights(student, dtype)
    with atomic_dir(folder) as part:
        weights.write_tensors(part / "model.safetensors", tensors)
        write_json(part / "config.json", config)
