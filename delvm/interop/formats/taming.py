"""The VQGAN checkpoints of taming-transformers: a Lightning .ckpt and the YAML beside it.

Its weights have the names of `VQGAN`, with those of the loss (discriminator, LPIPS) among them,
and its network works on pixels in [-1, 1].
"""

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from delvm.errors import UserError

# Names below model.params.ddconfig -> ours.
_NAMES = {
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
_ONLY = {"double_z": False, "attn_type": "vanilla", "give_pre_end": False, "tanh_out": False}
_PLACES = "NAME.yaml, model.yaml or config.yaml beside it, or ../configs/*-project.yaml"


def recognises(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a first stage of taming-transformers."""
    return "encoder.conv_in.weight" in _state(checkpoint)


def read(path: Path, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Architecture and weights; those of the training loss are left out.

    Args:
        path: of the checkpoint, to find its YAML.
        checkpoint: what the file holds.

    Raises:
        UserError: the YAML is missing or broken, or says what `VQGAN` cannot be.
    """
    return _config(find_yaml(path)), {
        name: tensor for name, tensor in _state(checkpoint).items() if not name.startswith("loss.")
    }


def find_yaml(path: Path) -> Path:
    """The YAML of a checkpoint: as downloads have it, or in the layout of a training's logs.

    Raises:
        UserError: there is none, or there are several.
    """
    beside = [path.with_suffix(".yaml"), path.parent / "model.yaml", path.parent / "config.yaml"]
    for place in beside:
        if place.is_file():
            return place
    logs = sorted((path.parent.parent / "configs").glob("*-project.yaml"))
    if len(logs) == 1:
        return logs[0]
    many = f"; there are {len(logs)} of the last" if logs else ""
    raise UserError(f"the YAML of {path} is not there: put it at {_PLACES}{many}")


def _state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state = checkpoint.get("state_dict", checkpoint)
    return state if isinstance(state, dict) else {}


def _config(path: Path) -> dict[str, Any]:
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
    if net.pop("out_ch", 3) != net.get("in_channels", 3):
        raise UserError(f"{path}: out_ch and in_channels differ, a tokenizer draws what it reads")
    for name, only in _ONLY.items():
        if (value := net.pop(name, only)) != only:
            raise UserError(f"{path}: {name} {value} is not supported, only {only}")
    if unknown := sorted(set(net) - set(_NAMES)):
        raise UserError(f"{path}: unknown keys in ddconfig: {', '.join(unknown)}")
    ours = {_NAMES[name]: value for name, value in net.items()}
    return ours | {
        "num_embeddings": n_embed,
        "quantized_embed_dim": embed_dim,
        "signed_pixels": True,
        "lone_attention": True,
    }
