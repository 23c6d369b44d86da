"""Weight files: written as safetensors; read, as untrusted, from those or pickles, or shards.

A pickle is opened for tensors and plain values only; one that wants to run code is refused.
"""

import re
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from delvm.errors import UserError
from delvm.storage import read_json

# As transformers, diffusers and open-muse name them; the first one found is read.
NAMES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)


class _Inert:
    """Stands in for a class that a checkpoint names and nothing here needs."""


# What may be named, and what it becomes: the other project's own class is never imported.
_STAND_INS: list[tuple[type, str]] = [
    # Lightning before 2.0 names its callbacks by their class; the name alone does no harm.
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Inert, "pytorch_lightning.callbacks.early_stopping.EarlyStopping"),
    # InternLM's training configs, in its model_config.pt: a subclass of dict, and nested.
    (dict, "internlm.core.context.parallel_context.Config"),
]


def read_pickle(path: Path, lazy: bool = False) -> Any:
    """Tensors and plain values of a file that torch.save wrote.

    Args:
        path: the file.
        lazy: leave tensors on disk until they are used.

    Raises:
        UserError: it cannot be read, or holds more than that.
    """
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # whatever a broken or hostile file makes torch raise
        raise UserError(
            f"checkpoint {path} cannot be read as tensors and plain values: {reason(error)}"
        ) from None


def reason(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to read it unsafely."""
    if wants := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {wants[1]}, which is neither"
    if "zip archive" in str(error):
        return "it is damaged, or not all of it is there"
    return "it is not a checkpoint"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of one file, .safetensors or a pickled state dict.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"weights {path} cannot be read: {error}") from None
    found = read_pickle(path)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"weights {path} are no state dict: a name and a tensor each")
    return found


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, with the permissions that files have here."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # Not save_file, which would make a file that nobody else may read. transformers reads none
    # that does not say its format.
    path.write_bytes(save(whole, metadata={"format": "pt"}))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder, from one file or from the shards that an index lists.

    Raises:
        UserError: there are none, or a shard is missing, unreadable or not as the index says.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return _read_shards(index)
    raise UserError(f"no weights in {folder}: it needs one of {', '.join(NAMES)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index, "index of shards").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise UserError(f"{index} has no weight_map of names and files")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if PurePath(file).name != file:  # an index must not reach outside its folder
            raise UserError(f"{index} names {file!r}, which is not a file beside it")
        if not (index.parent / file).is_file():
            raise UserError(f"shard {file} is missing beside {index}")
        weights |= read_tensors(index.parent / file)
    if odd := sorted(weights.keys() ^ places.keys()):
        raise UserError(f"shards and {index} do not agree on: {', '.join(odd)}")
    return weights
