"""Sharded checkpoints: folders in which each process of a training run wrote what it held.

The folder is one of torch.distributed.checkpoint: tensors in ``*.distcp`` and an index in
``.metadata``. Next to them, ``meta.pt`` has the rest of Lightning's checkpoint. Any number of
processes can read it, whatever number wrote it.

torch itself unpickles ``.metadata``, and values that are not tensors, without restrictions. Here
they are read as untrusted.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as load_state

from delvm.errors import UserError
from delvm.interop.weight_files import describe_error, read_pickle

INDEX_FILE, METADATA_FILE = ".metadata", "meta.pt"

# What an index may name, and what is built of it.
ALLOWED_GLOBALS: dict[str, Any] = {
    **{f"{metadata.__name__}.{name}": getattr(metadata, name) for name in metadata.__all__},
    f"{metadata.__name__}._MEM_FORMAT_ENCODING": metadata._MEM_FORMAT_ENCODING,
    f"{filesystem.__name__}._StorageInfo": filesystem._StorageInfo,
    "torch.Size": torch.Size,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    # Where the folder was when it was written; not used, so a plain string will do.
    **{
        f"{module}.{name}Path": lambda *parts: "/".join(parts)
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "PurePosix", "PureWindows")
    },
}


def can_load(path: str | Path) -> bool:
    """Whether a folder is a sharded checkpoint."""
    return (Path(path) / INDEX_FILE).is_file()


def tensor_names(folder: Path) -> set[str]:
    """The names of all tensors and values in a checkpoint, as ``state_dict.model.norm.weight``.

    Raises:
        UserError: its index cannot be read, or names anything but tensors and plain values.
    """
    return set(_index(folder).state_dict_metadata)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Lightning's checkpoint without the weights and the optimizer states.

    Raises:
        UserError: it cannot be read as tensors and plain values.
    """
    file = folder / METADATA_FILE
    if not file.is_file():
        raise UserError(f"checkpoint {folder} is incomplete: {METADATA_FILE} is missing")
    found = read_pickle(file)
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {file} holds a {type(found).__name__}, not a dict")
    return found


def write_metadata(folder: Path, values: dict[str, Any]) -> None:
    """Write what `read_metadata` reads."""
    torch.save(values, folder / METADATA_FILE)


def read(folder: Path, prefix: str = "") -> dict[str, Any]:
    """The full tensors, merged from all shards on this process: nested as they were saved.

    Args:
        folder: of the checkpoint.
        prefix: of the names to read, as ``state_dict.``; all by default.

    Raises:
        UserError: the folder is damaged, or holds anything but tensors and plain values.
    """
    index = _index(folder)
    entries = {k: v for k, v in index.state_dict_metadata.items() if k.startswith(prefix)}
    flat: dict[str, Any] = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        if isinstance(each, TensorStorageMetadata)
        else None
        for name, each in entries.items()
    }
    load(flat, folder)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = (index.planner_data or {}).get(name, (name,))
        parent = nested
        for key in path:
            parent = parent.setdefault(key, {})
        parent[last] = value
    restored: dict[str, Any] = _restore_lists(nested)
    return restored


def _restore_lists(value: Any) -> Any:
    """A tree in which every dict with integer keys is a list again, as before it was flattened."""
    if not isinstance(value, dict):
        return value
    items = {key: _restore_lists(each) for key, each in value.items()}
    if items and all(isinstance(key, int) for key in items):
        return [items[key] for key in sorted(items)]
    return items


def load(state: dict[str, Any], folder: Path) -> None:
    """Load a checkpoint into the tensors and values of a state, on each process its own shards.

    Args:
        state: tensors, or shards of them (DTensor), filled in place.
        folder: of the checkpoint; it may hold more.

    Raises:
        UserError: the folder is damaged, or holds anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*intent is to load in a single process.*")
            load_state(state, storage_reader=_Reader(folder), planner=_Planner())
    except UserError:
        raise
    # Whatever a broken or hostile folder makes torch raise; the second is not an Exception.
    except (Exception, CheckpointException) as error:
        raise _to_user_error(error, folder) from None


def _to_user_error(error: BaseException, folder: Path) -> UserError:
    """The error in one line."""
    if isinstance(error, CheckpointException) and error.failures:  # one per process
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"checkpoint {error.filename or folder} cannot be read: {error.strerror}")
    why = describe_error(error) if isinstance(error, Exception) else type(error).__name__
    return UserError(f"checkpoint {folder} cannot be read as tensors and plain values: {why}")


def _index(folder: Path) -> Metadata:
    """The index, whose file names stay in the folder."""
    path = folder / INDEX_FILE
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:  # whatever a broken or hostile pickle makes Python raise
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None
    if not isinstance(found, Metadata) or not isinstance(
        getattr(found, "state_dict_metadata", None), dict
    ):
        raise UserError(f"checkpoint {path} is not the index of a checkpoint")
    for info in (found.storage_data or {}).values():
        if Path(info.relative_path).name != info.relative_path:  # it must not reach outside
            raise UserError(
                f"checkpoint {path} names {info.relative_path!r}, which is not a file next to it"
            )
    return found


class _Unpickler(pickle.Unpickler):
    """Builds what an index consists of, and refuses everything else."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ALLOWED_GLOBALS:
            return ALLOWED_GLOBALS[full]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise UserError(
            f"checkpoint {self.path} asks for {full}, which an index of tensors does not need"
        )


class _Reader(FileSystemReader):
    """Reads the index as untrusted."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = _index(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Planner(DefaultLoadPlanner):
    """Reads values that are not tensors as untrusted."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        parent: Any = self.original_state_dict
        *path, last = self.mappings[name]
        for key in path:
            parent = parent[key]
        parent[last] = torch.load(value, weights_only=True)
