"""How checkpoints are written and read: atomic files, or directories to which each rank writes.

Either kind resumes on any number of processes. A sharded checkpoint is a directory that
`delvm.interop.sharded_checkpoint` describes.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from delvm.interop import sharded_checkpoint as sharded
from delvm.interop.weight_files import read_pickle
from delvm.legacy import upgrade_checkpoint
from delvm.storage import remove

_SHARDED = StateDictOptions(cpu_offload=True)
_FULL = StateDictOptions(full_state_dict=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of strategies whose ranks each hold the complete model: one file.

    It also reads sharded checkpoints, so that one process can resume a run of several.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a complete file or none; it also replaces a sharded checkpoint of that name."""
        tmp = Path(path).with_name(f".{Path(path).name}.part")
        tmp.parent.mkdir(parents=True, exist_ok=True)
        # Lightning's writer goes through the system's temporary directory, which may be full or on
        # another disk, and where the file of a killed process stays.
        try:
            with tmp.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # of torch's archive writer, when the disk is full
            raise error.__cause__ or OSError(errno.EIO, str(error)) from error
        _atomic_replace(tmp, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a complete checkpoint as Lightning expects it.

        Raises:
            UserError: a sharded one is damaged or unsafe.
        """
        if not sharded.can_load(path):
            return upgrade_checkpoint(super().load_checkpoint(path, weights_only=weights_only))
        found = sharded.read(Path(path))
        states = [found[f"optimizer_{number}"] for number in range(len(found) - 1)]
        states = [_with_keys(state, range(len(state["state"]))) for state in states]
        rest = sharded.read_metadata(Path(path))
        return upgrade_checkpoint(
            {**rest, "state_dict": found["state_dict"], "optimizer_states": states}
        )


class ShardedCheckpointMixin(ParallelStrategy):
    """A strategy whose ranks each write and read their shard; it reads complete files as well."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=_SHARDED)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        state: dict[str, Any] = get_optimizer_state_dict(
            self.model, unwrap(optimizer), options=_SHARDED
        )
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a complete directory or none."""
        assert storage_options is None
        path = Path(self.broadcast(filepath))
        tmp = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
        self.barrier()
        state = {"state_dict": checkpoint.pop("state_dict")}
        for number, each in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = each
        try:
            state_dict_saver.save(state, storage_writer=FileSystemWriter(tmp))
            if self.is_global_zero:
                sharded.write_metadata(tmp, checkpoint)
                _atomic_replace(tmp, path)
        finally:
            if self.is_global_zero:
                shutil.rmtree(tmp, ignore_errors=True)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the model and the optimizers, and return the rest of the checkpoint."""
        assert self.model is not None
        path = Path(self.broadcast(checkpoint_path))
        if not sharded.can_load(path):
            return self._load_full(upgrade_checkpoint(read_pickle(path, lazy=True)))
        weights = {"state_dict": get_model_state_dict(self.model)}
        sharded.load(weights, path)
        set_model_state_dict(self.model, weights["state_dict"])
        for number, optimizer in enumerate(map(unwrap, self.optimizers)):
            state = {f"optimizer_{number}": get_optimizer_state_dict(self.model, optimizer)}
            sharded.load(state, path)
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{number}"])
        return upgrade_checkpoint(sharded.read_metadata(path))

    def _load_full(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        assert self.model is not None and self.lightning_module is not None
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=_FULL)
        for optimizer, state in zip(
            map(unwrap, self.optimizers), checkpoint.pop("optimizer_states"), strict=True
        ):
            own: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer)
            named = _with_keys(state, _keys(own))
            set_optimizer_state_dict(self.model, optimizer, named, options=_FULL)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Nothing is left to do: `load_checkpoint` has loaded the model."""

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Nothing is left to do: `load_checkpoint` has loaded the optimizers."""


def unwrap(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """The optimizer within Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _with_keys(state: dict[str, Any], keys: Iterable[Any]) -> dict[str, Any]:
    """An optimizer's state under other keys for its parameters, in the order of its groups."""
    new = dict(zip(_keys(state), keys, strict=True))
    groups = [
        {**group, "params": [new[key] for key in group["params"]]}
        for group in state["param_groups"]
    ]
    return {"state": {new[k]: v for k, v in state["state"].items()}, "param_groups": groups}


def _keys(state: dict[str, Any]) -> Iterable[Any]:
    """The keys of an optimizer's parameters, in the order of its groups."""
    return chain.from_iterable(group["params"] for group in state["param_groups"])


def _atomic_replace(tmp: Path, path: Path) -> None:
    """Give a finished checkpoint its name; os.replace does not replace a directory."""
    if tmp.is_dir() or path.is_dir():
        remove(path)
    os.replace(tmp, path)
