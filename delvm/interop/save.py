"""Write a tokenizer or a student as a folder in DeLVM's own format: config.json and weights."""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.interop.weight_files import write_model_dir
from delvm.models.lora import merge_adapters
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig

FORMAT = "delvm-1"


# Does not change what the model computes, and depends on the memory of the machine.
_NOT_SAVED = {"activation_checkpointing"}


def plain_config(config: VQGANConfig | TransformerConfig) -> dict[str, Any]:
    """The fields of a model's config as plain values, without those that are not saved."""
    return {
        k: v.value if isinstance(v, Enum) else v
        for k, v in asdict(config).items()
        if k not in _NOT_SAVED
    }


def config_dict(model: VQGAN | Transformer) -> dict[str, Any]:
    """The config.json of a model, which checkpoints carry under ``delvm``: plain values only."""
    config = plain_config(model.config)
    if isinstance(model, VQGAN):
        return {"format": FORMAT, "kind": "tokenizer", "config": config}
    return {
        "format": FORMAT,
        "kind": "student",
        "config": config,
        "tokenizer_fingerprint": model.tokenizer_fingerprint,
        "space": asdict(model.token_space),
    } | ({"resize": model.resize} if model.resize else {})


def save_model(
    model: VQGAN | Transformer,
    output_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model as a folder. The folder appears complete or not at all.

    Args:
        model: a tokenizer or a student.
        output_dir: replaced if it exists.
        dtype: of the weights on disk; float16 halves the size.
        state: the model's full state dict, where the model itself holds only a shard of it.

    Adapters are merged into the weights.
    """
    state = merge_adapters(model.state_dict() if state is None else state)
    # Copies: a tied embedding and its head share one tensor, which safetensors would refuse.
    tensors = {k: v.detach().to("cpu", dtype, copy=True) for k, v in state.items()}
    write_model_dir(output_dir, tensors, config_dict(model))
