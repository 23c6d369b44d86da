"""Checkpoints in parts: a folder in which each process of a training run wrote what it held.

The folder is one of torch.distributed.checkpoint: ``*.distcp`` with numbers, ``.metadata`` that
says where each tensor lies; beside them ``meta.pt`` with the rest of Lightning's checkpoint. The
parts are put together again for any number of processes, or for one.

torch itself unpickles ``.metadata``, and values that are no tensors, without any bounds. Here
they are read as untrusted.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from delvm.errors import UserError
from delvm.interop.weight_files import read_pickle, reason

INDEX, REST = ".metadata", "meta.pt"

_HARMLESS: dict[str, Any] = {
    **{f"{metadata.__name__}.{name}": getattr(metadata, name) for name in metadata.__all__},
    f"{metadata.__name__}._MEM_FORMAT_ENCODING": metadata._MEM_FORMAT_ENCODING,
    f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo,
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    # Where the folder once lay, which nothing here asks for: kept as its parts.
    **{
        f"{module}.{name}Path": lambda *parts: "/".join(parts)
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "PurePosix", "PureWindows")
    },
}


def recognises(path: str | Path) -> bool:
    """Whether a checkpoint in parts lies there."""
    return (Path(path) / INDEX).is_file()


def names(folder: Path) -> set[str]:
    """The names of all that a checkpoint holds, as ``state_dict.model.norm.weight``.

    Raises:
        UserError: its index cannot be read, or is no plain one.
    """
    return set(_index(folder).state_dict_metadata)


def read_rest(folder: Path) -> dict[str, Any]:
    """What of Lightning's checkpoint is neither weights nor the optimizer's state.

    Raises:
        UserError: it cannot be read as tensors and plain values.
    """
    if not (folder / REST).is_file():
        raise UserError(f"checkpoint {folder} is not whole: {REST} is missing")
    found = read_pickle(folder / REST)
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {folder / REST} holds a {type(found).__name__}, not a dict")
    return found


def write_rest(folder: Path, rest: dict[str, Any]) -> None:
    """Write it beside the parts."""
    torch.save(rest, folder / REST)


def read(folder: Path, prefix: str = "") -> dict[str, Any]:
    """The parts put together, on this process alone: nested as they were saved.

    Args:
        folder: of the checkpoint.
        prefix: of the names to read, as ``state_dict.``; all by default.

    Raises:
        UserError: the folder is damaged, or holds more than tensors and plain values.
    """
    index = _index(folder)
    kept = {k: v for k, v in index.state_dict_metadata.items() if k.startswith(prefix)}
    flat: dict[str, Any] = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        if isinstance(each, TensorStorageMetadata)
        else None
        for name, each in kept.items()
    }
    load(flat, folder)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = (index.planner_data or {}).get(name, (name,))
        place = nested
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return _with_lists(nested)


def _with_lists(value: Any) -> Any:
    """A tree whose lists were taken apart, which have whole numbers for keys, with its lists."""
    if not isinstance(value, dict):
        return value
    parts = {key: _with_lists(each) for key, each in value.items()}
    if parts and all(isinstance(key, int) for key in parts):
        return [parts[key] for key in sorted(parts)]
    return parts


def load(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors and values of a state from a checkpoint, each process its own.

    Args:
        state: what is to be filled, of tensors or parts of tensors (DTensor), in place.
        folder: of the checkpoint; it may hold more.

    Raises:
        UserError: the folder is damaged, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*intent is to load in a single process.*")
            dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())
    except UserError:
        raise
    # Whatever a broken or hostile folder makes torch raise; the second is no Exception.
    except (Exception, dcp.CheckpointException) as error:
        raise _told(error, folder) from None


def _told(error: BaseException, folder: Path) -> UserError:
    """What went wrong, in one line."""
    if isinstance(error, dcp.CheckpointException) and error.failures:  # of every process
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"checkpoint {error.filename or folder} cannot be read: {error.strerror}")
    why = reason(error) if isinstance(error, Exception) else type(error).__name__
    return UserError(f"checkpoint {folder} cannot be read as tensors and plain values: {why}")


def _index(folder: Path) -> Metadata:
    try:
        with (folder / INDEX).open("rb") as file:
            found = _Unpickler(file, folder).load()
    except UserError:
        raise
    except Exception as error:  # whatever a broken or hostile pickle makes Python raise
        raise UserError(f"checkpoint {folder}/{INDEX} cannot be read: {error}") from None
    if not isinstance(found, Metadata):
        raise UserError(f"checkpoint {folder}/{INDEX} is no index of a checkpoint")
    for place in (found.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:  # it must not reach outside
            raise UserError(
                f"checkpoint {folder}/{INDEX} names {place.relative_path!r}, which is not a file "
                "beside it"
            )
    return found


class _Unpickler(pickle.Unpickler):
    """Makes what an index is made of, and refuses everything else."""

    def __init__(self, file: IO[bytes], folder: Path) -> None:
        super().__init__(file)
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _HARMLESS:
            return _HARMLESS[full]
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        raise UserError(
            f"checkpoint {self.folder}/{INDEX} asks for {full}, which no index of tensors needs"
        )


class _Reader(dcp.FileSystemReader):
    """Reads the index as untrusted."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = _index(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors as untrusted."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        place: Any = self.original_state_dict
        *path, last = self.mappings[name]
        for key in path:
            place = place[key]
        place[last] = torch.load(value, weights_only=True)
