"""VQGAN folders of open-muse, which LVM and DeLVM use too.

config.json has the architecture under the field names of `VQGANConfig`, and the weights have the
names of `VQGAN`: they are checked, not converted.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.save import plain_config
from delvm.interop.weight_files import NO_FILES, read_weights, write_model_dir
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig

CLASS_NAME = "VQGANModel"
# Its other tokenizers, whose configs have the same keys and whose networks are others.
OTHER_CLASSES = ("MaskGitVQGAN", "MOVQ", "PaellaVQModel")
# Fields of `VQGANConfig` that the format does not have -> the value that it implies.
_EXTENSIONS = {
    "patch_size": 1,
    "pixel_range": PixelRange.unit.value,
    "use_l2_norm": False,
    "attn_in_single_block_levels": False,
}


def matches(source: ModelSource) -> bool:
    """Whether config.json is that of a tokenizer of open-muse."""
    known = (CLASS_NAME, *OTHER_CLASSES)
    return source.config.get("_class_name") in known or "quantized_embed_dim" in source.config


def read(source: ModelSource, kind: str) -> ModelData:
    """Metadata and weights of a tokenizer.

    Raises:
        UserError: it is another network of open-muse, the config has an unknown key, or the
            weights cannot be read.
    """
    _check_class(source.config.get("_class_name", CLASS_NAME), source.path)
    config = import_config(source.config, source.path)
    state = read_weights(source.path)
    # The network of MaskGIT has no attention, and none of the 1 x 1 convolutions at the codes.
    if "encoder.mid.0.conv1.weight" in state and "quant_conv.weight" not in state:
        _check_class("MaskGitVQGAN", source.path)
    return {"kind": "tokenizer", "config": config}, state


def _check_class(name: Any, folder: Path) -> None:
    if name != CLASS_NAME:
        raise UserError(
            f"{folder} holds a {name} of open-muse, another network that is not supported: set "
            f"tokenizer to the folder of a {CLASS_NAME}, such as LVM's vqgan-f16-8192-laion"
        )


def import_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of `VQGANConfig` from a config.json.

    Raises:
        UserError: it has an unknown key.
    """
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    known = {field.name for field in fields(VQGANConfig)} - set(_EXTENSIONS)
    if unknown := sorted(set(values) - known):
        raise UserError(f"{folder}/config.json: unknown keys: {', '.join(unknown)}")
    return values


def infer_config(state: dict[str, Tensor], folder: Path, resolution: int = 256) -> dict[str, Any]:
    """Fields of `VQGANConfig` from the shapes of weights that come without a config.json.

    Args:
        state: the weights.
        folder: where they are from, for messages.
        resolution: image side in pixels, which the weights do not determine.

    Raises:
        UserError: weights are missing.
    """
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    try:
        hidden, channels = state["encoder.conv_in.weight"].shape[:2]
        codebook_size, embed_dim = state["quantize.embedding.weight"].shape
        widths = [len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)]
        return {
            "resolution": resolution,
            "num_channels": channels,
            "hidden_channels": hidden,
            "channel_mult": [each // hidden for each in widths],
            "num_res_blocks": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
            "attn_resolutions": [
                resolution >> i
                for i in range(levels)
                if f"encoder.down.{i}.attn.0.q.weight" in state
            ],
            "no_attn_mid_block": "encoder.mid.attn_1.q.weight" not in state,
            "z_channels": len(state["encoder.conv_out.weight"]),
            "num_embeddings": codebook_size,
            "quantized_embed_dim": embed_dim,
            "resample_with_conv": levels == 1 or "encoder.down.0.downsample.conv.weight" in state,
        }
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"the tokenizer in {folder} is incomplete: {error}") from None


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers a pattern finds in the names of weights."""
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def write(
    tokenizer: VQGAN,
    output_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Write a tokenizer as open-muse reads it. The folder appears complete or not at all.

    Raises:
        UserError: the format cannot express its architecture.
    """
    values = plain_config(tokenizer.config)
    for name, only in _EXTENSIONS.items():
        if (value := values.pop(name)) != only:
            raise UserError(f"open-muse has no {name}: {value} (tokenizer) != {only} (open-muse)")
    state = {k: v.detach().cpu().to(dtype) for k, v in tokenizer.state_dict().items()}
    config = {"_class_name": CLASS_NAME, "_version": "0.0.1"} | values
    # Its own loader reads pytorch_model.bin alone.
    write_model_dir(output_dir, state, config, pickled=True, files=files)
