"""A folder or file that may hold a model; its config and checkpoint are read once."""

from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from delvm.interop.weight_files import read_pickle
from delvm.storage import read_json

# config.json as DeLVM writes it ("kind", "config", ...) and the state dict of the model.
ModelData: TypeAlias = tuple[dict[str, Any], dict[str, Tensor]]


class ModelSource:
    """What is at a path, for the format modules to recognize and read.

    Attributes:
        path: the folder or file.
        config: the folder's config.json; empty for a file, or where there is none.
        checkpoint: the dict in the file (torch.save); empty for a folder or for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json.

        Raises:
            UserError: it cannot be read, or is not a JSON object.
        """
        file = self.path / "config.json"
        return read_json(file, "model config") if file.exists() else {}

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint.

        Raises:
            UserError: it cannot be read as tensors and plain values.
        """
        found = read_pickle(self.path) if self.path.is_file() else None
        return found if isinstance(found, dict) else {}
