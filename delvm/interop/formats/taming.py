"""VQGAN checkpoints of taming-transformers: a Lightning .ckpt with a YAML next to it.

The weights have the names of `VQGAN`, mixed with those of the training loss (discriminator, LPIPS),
and the network works on pixels in [-1, 1].
"""

from pathlib import Path
from typing import Any

import yaml

from delvm.errors import UserError
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.weight_files import strip_wrappers
from delvm.models.vqgan import PixelRange

# Keys under model.params.ddconfig -> fields of `VQGANConfig`.
_CONFIG_KEYS = {
    "resolution": "resolution",
    "in_channels": "num_channels",
    "ch": "hidden_channels",
    "ch_mult": "channel_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels",
    "dropout": "dropout",
    "resamp_with_conv": "resample_with_conv",
}
_SUPPORTED_ONLY = {
    "double_z": False,
    "attn_type": "vanilla",
    "give_pre_end": False,
    "tanh_out": False,
}
_YAML_LOCATIONS = "NAME.yaml, model.yaml or config.yaml next to it, or ../configs/*-project.yaml"


def matches(source: ModelSource) -> bool:
    """Whether a file is the checkpoint of a first stage (VQGAN)."""
    return "encoder.conv_in.weight" in _state_dict(source.checkpoint)


def read(source: ModelSource, kind: str) -> ModelData:
    """Metadata and weights of a tokenizer; weights of the training loss are left out.

    Raises:
        UserError: the YAML is missing or broken, or `VQGAN` does not support the architecture.
    """
    config = _import_config(find_yaml(source.path))
    state = _state_dict(source.checkpoint)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    return {"kind": "tokenizer", "config": config}, weights


def find_yaml(checkpoint: Path) -> Path:
    """The YAML of a checkpoint, as it is in downloads or in the log folder of a training run.

    Raises:
        UserError: there is none, or there are several.
    """
    folder = checkpoint.parent
    for path in (checkpoint.with_suffix(".yaml"), folder / "model.yaml", folder / "config.yaml"):
        if path.is_file():
            return path
    logged = sorted((folder.parent / "configs").glob("*-project.yaml"))
    if len(logged) == 1:
        return logged[0]
    several = f" (found {len(logged)} of the last)" if logged else ""
    raise UserError(f"the YAML of {checkpoint} is missing: expected {_YAML_LOCATIONS}{several}")


def _state_dict(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state = checkpoint.get("state_dict", checkpoint)
    return strip_wrappers(state) if isinstance(state, dict) else {}


def _import_config(path: Path) -> dict[str, Any]:
    """Fields of `VQGANConfig` from the YAML."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = found["model"]["params"]
        net, embed_dim, n_embed = dict(params["ddconfig"]), params["embed_dim"], params["n_embed"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} has no model.params with ddconfig, embed_dim and n_embed"
        ) from None
    if (out := net.pop("out_ch", 3)) != (channels := net.get("in_channels", 3)):
        raise UserError(f"{path}: out_ch {out} != in_channels {channels}")
    for name, only in _SUPPORTED_ONLY.items():
        if (value := net.pop(name, only)) != only:
            raise UserError(f"{path}: {name} {value} is not supported, only {only}")
    if unknown := sorted(set(net) - set(_CONFIG_KEYS)):
        raise UserError(f"{path}: unknown keys in ddconfig: {', '.join(unknown)}")
    return {_CONFIG_KEYS[name]: value for name, value in net.items()} | {
        "num_embeddings": n_embed,
        "quantized_embed_dim": embed_dim,
        "pixel_range": PixelRange.signed.value,
        "attn_in_single_block_levels": True,
    }
