"""The VQGAN folders of open-muse, which LVM and DeLVM use as well.

config.json holds the architecture under the names that `VQGANConfig` has, and the weights have
the names of `VQGAN`: there is nothing to convert, only to check.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from delvm.errors import UserError
from delvm.files import atomic_folder, write_json
from delvm.interop import weights
from delvm.models.vqgan import VQGAN, VQGANConfig

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
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    known = {field.name for field in fields(VQGANConfig)} - set(_OURS)
    if unknown := sorted(set(values) - known):
        raise UserError(f"{folder}/config.json: unknown keys: {', '.join(unknown)}")
    return values, weights.read_folder(folder)


def write(tokenizer: VQGAN, folder: str | Path) -> None:
    """Write a tokenizer as open-muse reads it, whole or not at all.

    Raises:
        UserError: its architecture has what the layout cannot express.
    """
    values = asdict(tokenizer.config)
    for name, only in _OURS.items():
        if (value := values.pop(name)) != only:
            raise UserError(f"open-muse has no {name}: {value} (tokenizer) != {only} (open-muse)")
    tensors = {k: v.detach().cpu() for k, v in tokenizer.state_dict().items()}
    with atomic_folder(folder) as part:
        weights.write_tensors(part / "model.safetensors", tensors)
        write_json(part / "config.json", {"_class_name": CLASS, "_version": "0.0.1"} | values)
