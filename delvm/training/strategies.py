"""How a run is spread over processes: which strategy, clipping, and weights and checkpoints whole.

Each process reads its own share of a batch. Under ``ddp`` each holds the whole model. Under the
others it holds a part of each weight, of its gradient and of the optimizer's state; a block's
weights are gathered while the block computes. Each then writes its own part of a checkpoint
(`delvm.interop.sharded_checkpoint`), which can be gone on with by any number of processes.
"""

import atexit
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from delvm.interop import sharded_checkpoint as sharded
from delvm.interop.save import save_model
from delvm.interop.weight_files import read_pickle
from delvm.legacy import upgrade_checkpoint
from delvm.models.transformer import Block, Transformer
from delvm.models.vqgan import VQGAN
from delvm.storage import remove
from delvm.training.config import ParamDtype, ShardedConfig, StrategyName, TrainConfig

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_PARTS = StateDictOptions(cpu_offload=True)


def build_strategy(config: TrainConfig, precision: str) -> str | Strategy:
    """Lightning's strategy for a run.

    Args:
        config: of the run, checked.
        precision: Lightning's name of the run's precision.
    """
    c, world = config.strategy, config.trainer.world
    if c.name is StrategyName.single:
        return "auto"
    atexit.register(_destroy_process_group)
    if c.name is StrategyName.ddp:
        return DDPStrategy(
            process_group_backend=c.backend,
            checkpoint_io=AtomicCheckpointIO(),
            gradient_as_bucket_view=True,
        )
    assert isinstance(c, ShardedConfig)  # checked with the config
    whole = config.trainer.devices if c.name is StrategyName.hsdp else world
    bf16 = c.gather is ParamDtype.bfloat16 or (
        c.gather is ParamDtype.auto and precision == "bf16-mixed"
    )
    made = FSDP1Strategy if c.name is StrategyName.fsdp else FSDP2Strategy
    return made(world, c.shard or whole, torch.bfloat16 if bf16 else None, c.backend)


class ShardedCheckpointMixin(ParallelStrategy):
    """Each process writes and reads its part of a checkpoint; whole files are read as well."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=_PARTS)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        return get_optimizer_state_dict(self.model, _unwrap(optimizer), options=_PARTS)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a folder, whole or not at all."""
        assert storage_options is None
        path = Path(self.broadcast(filepath))
        part = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.barrier()
        state = {"state_dict": checkpoint.pop("state_dict")}
        for number, each in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = each
        try:
            dcp.save(state, storage_writer=dcp.FileSystemWriter(part))
            if self.is_global_zero:
                sharded.write_metadata(part, checkpoint)
                _atomic_replace(part, path)
        finally:
            if self.is_global_zero:
                shutil.rmtree(part, ignore_errors=True)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Take what a checkpoint holds, in parts or whole, and return the rest of it."""
        assert self.model is not None
        path = Path(self.broadcast(checkpoint_path))
        if not sharded.can_load(path):
            return self._load_whole(upgrade_checkpoint(read_pickle(path, lazy=True)))
        weights = {"state_dict": get_model_state_dict(self.model)}
        sharded.load(weights, path)
        set_model_state_dict(self.model, weights["state_dict"])
        for number, optimizer in enumerate(map(_unwrap, self.optimizers)):
            state = {f"optimizer_{number}": get_optimizer_state_dict(self.model, optimizer)}
            sharded.load(state, path)
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{number}"])
        return upgrade_checkpoint(sharded.read_metadata(path))

    def _load_whole(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        assert self.model is not None and self.lightning_module is not None
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=whole)
        for optimizer, state in zip(
            map(_unwrap, self.optimizers), checkpoint.pop("optimizer_states"), strict=True
        ):
            ours: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer)
            named = _renamed(state, _keys(ours))
            set_optimizer_state_dict(self.model, optimizer, named, options=whole)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Nothing is left to do: `load_checkpoint` has done it."""

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Nothing is left to do: `load_checkpoint` has done it."""


class FSDP2Strategy(ShardedCheckpointMixin, ModelParallelStrategy):
    """`fully_shard`, a block at a time; with less than all devices a shard, copies of the shards.

    Lightning's mesh has two dimensions, of which the second is here what a copy is spread over.
    Its names for them speak of something else (tensor parallelism), which is not used.
    """

    def __init__(
        self, world: int, shard: int, gather: torch.dtype | None, backend: str | None
    ) -> None:
        super().__init__(world // shard, shard, process_group_backend=backend)
        self.replicas, self.gather = world // shard, gather

    def shard(self, model: Transformer) -> None:
        """Spread a model's weights over the mesh."""
        if isinstance(model, FSDPModule):  # Lightning may ask more than once
            return
        mesh = self.device_mesh if self.replicas > 1 else self.device_mesh["tensor_parallel"]
        policy = MixedPrecisionPolicy(
            param_dtype=self.gather, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # A model without storage is filled a block at a time: no process ever holds all of it.
        empty = next(model.blocks.parameters()).is_meta
        parts = model.init_weights() if empty else iter((*model.blocks, model))
        for part in parts:
            fully_shard(part, mesh=mesh, mp_policy=policy)
        # Losses ask for hidden states, and multiply by the head themselves. The weights outside
        # the blocks stay gathered from there to the end of the backward pass.
        register_fsdp_forward_method(model, "hidden")


class FSDP1Strategy(ShardedCheckpointMixin, FSDPStrategy):
    """`FullyShardedDataParallel` around each block and around the whole."""

    def __init__(
        self, world: int, shard: int, gather: torch.dtype | None, backend: str | None
    ) -> None:
        whole = shard == world
        super().__init__(
            process_group_backend=backend,
            auto_wrap_policy={Block},
            # The codebook and the rotary table keep their precision.
            mixed_precision=MixedPrecision(param_dtype=gather, reduce_dtype=torch.float32),
            sharding_strategy="FULL_SHARD" if whole else "HYBRID_SHARD",
            device_mesh=None if whole else (world // shard, shard),
            state_dict_type="sharded",
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints of a process that has all: files; those in parts are put together for it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a file, whole or not at all, also where a checkpoint in parts stands."""
        part = Path(path).with_name(f".{Path(path).name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        # Not Lightning's way, which goes through the system's folder for temporary files: that may
        # be full, or on another disk, and keeps what a killed process has written.
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's writer of archives, when the file takes no more
            raise error.__cause__ or OSError(errno.EIO, str(error)) from error
        _atomic_replace(part, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A whole checkpoint as Lightning wants it.

        Raises:
            UserError: it is in parts, and damaged or hostile.
        """
        if not sharded.can_load(path):
            found = super().load_checkpoint(path, weights_only=weights_only)
            return upgrade_checkpoint(found)
        found = sharded.read(Path(path))
        states = [found[f"optimizer_{number}"] for number in range(len(found) - 1)]
        states = [_renamed(state, range(len(state["state"]))) for state in states]
        rest = sharded.read_metadata(Path(path))
        return upgrade_checkpoint(
            {**rest, "state_dict": found["state_dict"], "optimizer_states": states}
        )


def plugins(config: TrainConfig) -> list[Any]:
    """What Lightning needs beside the strategy."""
    return [AtomicCheckpointIO()] if config.strategy.name is StrategyName.single else []


def is_rank_zero() -> bool:
    """Whether this is the only process of a run, or the one of them that speaks for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of a number over all processes: itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def clip_grad_norm(trainer: L.Trainer, optimizer: Optimizer, limit: float | None) -> Tensor:
    """Scale an optimizer's gradients down to a norm, taken over all of the model's.

    Args:
        trainer: of the run.
        optimizer: its parameters have their gradients, each process its part of them.
        limit: largest norm; None = only measure.

    Returns:
        The norm before, the same in each process.
    """
    most = limit or float("inf")
    if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
        # A fused optimizer would do it in its step, after a clipping of what is still scaled up.
        scaler.unscale_(_unwrap(optimizer))
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        return model.clip_grad_norm_(most)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return clip_grads_(weights, most)


def clip_grads_(weights: list[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients of weights down to a norm of at most ``most``; return what it was."""
    norm = nn.utils.get_total_norm(weight.grad for weight in weights if weight.grad is not None)
    if isinstance(norm, DTensor):  # each process has the norm of its parts
        norm = norm.full_tensor()
    # On a processor there is no need to multiply all by 1; a GPU would wait to know its norm.
    if norm.device.type != "cpu" or not norm <= most:
        nn.utils.clip_grads_with_norm_(weights, most, norm)
    return norm


def export(trainer: L.Trainer, model: VQGAN | Transformer, folder: Path) -> None:
    """Write a trained model as a folder: the first process does, from the parts of all."""
    if trainer.world_size == 1 and not isinstance(model, FSDPModule):
        save_model(model, folder)
        return
    assert trainer.model is not None
    # Empty in all processes but the first.
    whole: dict[str, Any] = get_model_state_dict(trainer.model, options=_WHOLE)
    if trainer.is_global_zero:
        state = {k.removeprefix("model."): v for k, v in whole.items() if k.startswith("model.")}
        save_model(model, folder, state=state)
    trainer.strategy.barrier()


def exit_process(code: int) -> None:
    """End this process now with an exit code if it is one of several; its work is done.

    Threads of the connections may abort an orderly end ("terminate called without an active
    exception"), and torchrun would call a finished run failed.
    """
    if dist.is_available() and dist.is_initialized():
        _destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _destroy_process_group() -> None:
    """End the connections to other processes, where `exit_process` is not reached."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _unwrap(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _renamed(state: dict[str, Any], keys: Iterable[Any]) -> dict[str, Any]:
    """An optimizer's state with other keys for its parameters, given in the order of its groups."""
    new = dict(zip(_keys(state), keys, strict=True))
    groups = [
        {**group, "params": [new[key] for key in group["params"]]}
        for group in state["param_groups"]
    ]
    return {"state": {new[k]: v for k, v in state["state"].items()}, "param_groups": groups}


def _keys(state: dict[str, Any]) -> Iterable[Any]:
    """The keys of an optimizer's parameters, in the order of its groups."""
    return chain.from_iterable(group["params"] for group in state["param_groups"])


def _atomic_replace(part: Path, path: Path) -> None:
    """Give a finished checkpoint its name; a folder takes no other's place by itself."""
    if part.is_dir() or path.is_dir():
        remove(path)
    os.replace(part, path)
