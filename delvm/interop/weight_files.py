"""Weight files: safetensors, pickled state dicts, and either of them in shards with an index.

Files are untrusted. A pickle may hold tensors and plain values; one that asks for anything else is
refused. Weights are always written as safetensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from delvm.directories import atomic_dir
from delvm.errors import UserError
from delvm.storage import lfs_pointer_error, read_json, write_json

# Names used by transformers, diffusers and open-muse; the first one found is read.
WEIGHT_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)


NO_FILES: Mapping[str, str] = MappingProxyType({})

# Where a wrapper stands in the dotted name of a weight.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class _Placeholder:
    """Stands in for a class that a checkpoint names and that nothing here needs."""


# Classes a pickle may name, and what is built instead: the other project's class is never imported.
SAFE_GLOBALS: list[tuple[type, str]] = [
    # Lightning before 2.0 keys callback states by class; only the name is read.
    (_Placeholder, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_Placeholder, "pytorch_lightning.callbacks.early_stopping.EarlyStopping"),
    # The nested config in InternLM's model_config.pt, a subclass of dict.
    (dict, "internlm.core.context.parallel_context.Config"),
]


def read_pickle(path: Path, lazy: bool = False) -> Any:
    """Tensors and plain values from a file written by torch.save.

    Args:
        path: the file.
        lazy: memory-map tensors, so that they are read from disk when they are used.

    Raises:
        UserError: the file cannot be read, or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(list(SAFE_GLOBALS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # whatever a broken or hostile file makes torch raise
        raise UserError(
            lfs_pointer_error(path)
            or f"checkpoint {path} cannot be read as tensors and plain values: "
            f"{describe_error(error)}"
        ) from None


def describe_error(error: Exception) -> str:
    """Why a file cannot be read, without torch's advice to read it unsafely."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if match := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"it asks for {match[1]}, which is neither: if you trust it, save its state dict alone "
            "(torch.save) with the program that wrote it"
        )
    if "zip archive" in str(error):
        return "it is damaged or incomplete"
    return "it is not a checkpoint"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in one file, .safetensors or pickled.

    Raises:
        UserError: the file cannot be read, or is not a state dict.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            reason = lfs_pointer_error(path) or f"weights {path} cannot be read: {error}"
            raise UserError(reason) from None
    state = read_pickle(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise UserError(f"weights {path} are not a state dict (name -> tensor)")
    return state


def strip_wrappers(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without the names of what a model was wrapped in when it was saved.

    That is ``module.`` before all names (DataParallel, DDP), and ``_orig_mod.`` (torch.compile) and
    those of FSDP and activation checkpointing anywhere. A state dict without them is unchanged.
    """
    if not all(isinstance(name, str) for name in state):
        return state
    bare = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    while bare and all(name.startswith("module.") for name in bare):
        bare = {name.removeprefix("module."): value for name, value in bare.items()}
    return bare if len(bare) == len(state) else state


def write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Write a safetensors file with the default permissions of new files."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    # Not safetensors' save_file, which makes the file readable by its owner only. transformers
    # refuses files without a "format" in their metadata.
    path.write_bytes(save(contiguous, metadata={"format": "pt"}))


def write_model_dir(
    output_dir: str | Path,
    state: dict[str, Tensor],
    config: dict[str, Any],
    *,
    pickled: bool = False,
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Write config.json and model.safetensors. The folder appears complete or not at all.

    Args:
        output_dir: the folder, replaced if it exists.
        state: the weights.
        config: the config.json.
        pickled: whether the weights are also written as pytorch_model.bin, for programs that read
            no other file.
        files: further text files by name.
    """
    with atomic_dir(output_dir) as tmp:
        write_tensors(tmp / "model.safetensors", state)
        if pickled:
            torch.save(state, tmp / "pytorch_model.bin")
        for name, text in files.items():
            (tmp / name).write_text(text, encoding="utf-8")
        write_json(tmp / "config.json", config)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict in a folder, from one file or from the shards listed in an index.

    Raises:
        UserError: there is none, or a shard is missing, unreadable or inconsistent with the index.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return strip_wrappers(read_tensors(folder / name))
        if (index := folder / f"{name}.index.json").is_file():
            return strip_wrappers(_read_shards(index))
    raise UserError(f"no weights in {folder}: expected one of {', '.join(WEIGHT_FILES)}")


def shard_names(index: Path) -> dict[str, str]:
    """The name of each tensor and of the file next to the index that holds it.

    Raises:
        UserError: the index cannot be read, names a file elsewhere, or a pickle where it is that of
            safetensors.
    """
    files = read_json(index, "shard index").get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
        raise UserError(f"{index} has no weight_map (name -> file)")
    for file in sorted(set(files.values())):
        if PurePath(file).name != file:  # an index must not reach outside of its folder
            raise UserError(f"{index} names {file!r}, which is not a file next to it")
        if index.name.endswith(".safetensors.index.json") and not file.endswith(".safetensors"):
            raise UserError(f"{index} names {file!r}, which is not in safetensors")
    return files


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The state dict of all shards that an index lists."""
    files = shard_names(index)
    state: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if not (index.parent / file).is_file():
            raise UserError(f"shard {file} is missing next to {index}")
        state |= read_tensors(index.parent / file)
    if mismatched := sorted(state.keys() ^ files.keys()):
        raise UserError(f"the shards do not match {index}: {', '.join(mismatched)}")
    return state
