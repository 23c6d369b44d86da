"""The VQGAN folders of open-muse, which LVM and DeLVM use as well.

config.json holds the architecture under the names that `VQGANConfig` has, and the weights have
the names of `VQGAN`: there is nothing to convert, only to check.
"""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.storage import atomic_dir, write_json

CLASS = "VQGANModel"
# Fields of ours that the layout cannot express -> the only value that it can.
_OURS = {
    "patch_size": 1,
    "signed_pixels": False,
    "normalize_codes": False,
    "lone_attention": False,
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return config.get("_class_name") == CLASS or "quantized_embed_dim" in config


def read(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Architecture and weights.

    Args:
        folder: that holds the weights.
        config: its config.json.

    Raises:
        UserError: the config has a key that is not known here, or the weights cannot be read.
    """
    return check(config, folder), weights.read_folder(folder)


def check(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The architecture that a config.json describes.

    Raises:
        UserError: it has a key that is not known here.
    """
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    known = {field.name for field in fields(VQGANConfig)} - set(_OURS)
    if unknown := sorted(set(values) - known):
        raise UserError(f"{folder}/config.json: unknown keys: {', '.join(unknown)}")
    return values


def infer(found: dict[str, Tensor], folder: Path, resolution: int = 256) -> dict[str, Any]:
    """The architecture that weights without a config.json have.

    Args:
        found: the weights.
        folder: they came from.
        resolution: side of the pictures, which weights do not tell.

    Raises:
        UserError: they are not those of a whole tokenizer.
    """
    levels = _count(found, r"encoder\.down\.(\d+)\.")
    try:
        hidden, channels = found["encoder.conv_in.weight"].shape[:2]
        codes, width = found["quantize.embedding.weight"].shape
        widths = [len(found[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)]
        return {
            "resolution": resolution,
            "num_channels": channels,
            "hidden_channels": hidden,
            "channel_mult": [each // hidden for each in widths],
            "num_res_blocks": _count(found, r"encoder\.down\.0\.block\.(\d+)\."),
            "attn_resolutions": [
                resolution >> i
                for i in range(levels)
                if f"encoder.down.{i}.attn.0.q.weight" in found
            ],
            "no_attn_mid_block": "encoder.mid.attn_1.q.weight" not in found,
            "z_channels": len(found["encoder.conv_out.weight"]),
            "num_embeddings": codes,
            "quantized_embed_dim": width,
            "resample_with_conv": levels == 1 or "encoder.down.0.downsample.conv.weight" in found,
        }
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"the tokenizer in {folder} is not whole: {error}") from None


def _count(found: dict[str, Tensor], pattern: str) -> int:
    return len({each[1] for name in found if (each := re.match(pattern, name))})


def write(tokenizer: VQGAN, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer as open-muse reads it, whole or not at all.

    Raises:
        UserError: its architecture has what the layout cannot express.
    """
    values = asdict(tokenizer.config)
    for name, only in _OURS.items():
        if (value := values.pop(name)) != only:
            raise UserError(f"open-muse has no {name}: {value} (tokenizer) != {only} (open-muse)")
    tensors = {k: v.detach().cpu().to(dtype) for k, v in tokenizer.state_dict().items()}
    with atomic_dir(folder) as part:
        weights.write_tensors(part / "model.safetensors", tensors)
        write_json(part / "config.json", {"_class_name": CLASS, "_version": "0.0.1"} | values)
